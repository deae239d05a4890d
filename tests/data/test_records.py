"""Every format gives the same rows; every kind of damage is named with file and line."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsplit.data.records import describe, records
from fedsplit.errors import DataError

ROWS = [
    {"text": "one, two", "label": "a"},
    {"text": 'say "hi"', "label": "b"},
    {"text": "drei – ünïcode", "label": "a"},
]


def fields(path: Path) -> list[dict[str, Any]]:
    return [dict(record.fields) for record in records(path)]


def write(path: Path, text: str | bytes) -> Path:
    raw = text.encode() if isinstance(text, str) else text
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


JSONL = (
    '{"text": "one, two", "label": "a"}\n\n{"text": "say \\"hi\\"", "label": "b"}\r\n'
    '{"text": "drei – ünïcode", "label": "a"}'
)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("rows.jsonl", JSONL),
        ("rows.jsonl.gz", JSONL),
        ("rows.ndjson", "\ufeff" + JSONL),
        ("rows.json", "[" + ",".join(line for line in JSONL.split("\n") if line.strip()) + "]"),
        ("rows.json", JSONL),
        ("rows.csv", 'text,label\r\n"one, two",a\r\n"say ""hi""",b\r\ndrei – ünïcode,a\r\n'),
        ("rows.csv.gz", '\ufefftext,label\n"one, two",a\n"say ""hi""",b\n\ndrei – ünïcode,a'),
        ("rows.tsv", 'text\tlabel\none, two\ta\nsay "hi"\tb\ndrei – ünïcode\ta\n'),
        ("ROWS.TSV", 'text\tlabel\none, two\ta\nsay "hi"\tb\ndrei – ünïcode\ta\n'),
    ],
)
def test_formats_agree(tmp_path: Path, name: str, text: str) -> None:
    assert fields(write(tmp_path / name, text)) == ROWS


def test_lines_are_those_of_an_editor(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", "\n" + JSONL)
    assert [record.line for record in records(file)] == [2, 4, 5]
    file = write(tmp_path / "rows.csv", 'text,label\n"two\nlines",a\nx,b\n')
    assert [(record.line, record.fields["text"]) for record in records(file)] == [(3, "two\nlines"), (4, "x")]


def test_text_by_blank_lines_or_by_lines(tmp_path: Path) -> None:
    paragraphs = write(tmp_path / "a.txt", "\n\nfirst\nsecond\n\n \nthird\n\n")
    assert [(one.line, one.fields["text"]) for one in records(paragraphs)] == [(3, "first\nsecond"), (7, "third")]
    assert describe(paragraphs) == "text, documents separated by blank lines"
    lines = write(tmp_path / "b.txt.gz", "first\nsecond\n\n\n")
    assert [(one.line, one.fields["text"]) for one in records(lines)] == [(1, "first"), (2, "second")]
    assert describe(lines) == "text, one document a line"


@pytest.mark.parametrize(
    ("name", "content", "line", "words"),
    [
        ("a.jsonl", '{"text": "x"}\n{"text": \n', 2, "not a JSON object"),
        ("a.jsonl", '{"text": "x"}\n[1, 2]\n', 2, "expected a JSON object"),
        ("a.jsonl", b'{"text": "x"}\n{"text": "\xff"}\n', 2, "not UTF-8"),
        ("a.jsonl.gz", '{"text": "x"}\n\n"word"', 3, "expected a JSON object"),
        ("a.json", '[{"a": 1}, 2]', 2, "list of objects"),
        ("a.json", '[{"a": 1}', None, "not valid JSON"),
        ("a.csv", "text,label\nx,1\ny\n", 3, "found 1 fields, expected 2"),
        ("a.csv", "text,text\nx,1\n", 1, "twice"),
        ("a.csv", 'text,label\n"x,1\n', 2, "not a valid row"),
        ("a.csv", b"text,label\nx,1\n\xe9,2\n", 3, "not UTF-8"),
        ("a.jsonl", "", None, "empty"),
        ("a.jsonl", "\n \n", None, "empty"),
        ("a.csv", "text,label\n", None, "empty"),
        ("a.txt", "\n\n", None, "empty"),
        ("a.docx", "x", None, 'found the ending ".docx"'),
        ("a", "x", None, "expected one of .jsonl"),
    ],
)
def test_damage_has_a_place(tmp_path: Path, name: str, content: str | bytes, line: int | None, words: str) -> None:
    file = write(tmp_path / name, content)
    with pytest.raises(DataError, match=words.replace(".", r"\.")) as caught:
        fields(file)
    assert caught.value.line == line
    assert str(file) in str(caught.value)


def test_a_damaged_gzip_file_gives_its_good_rows_first(tmp_path: Path) -> None:
    text = "".join(f'{{"text": "{i} {np.random.default_rng(i).integers(10**9)}"}}\n' for i in range(20_000))
    whole = gzip.compress(text.encode())
    file = tmp_path / "a.jsonl.gz"
    file.write_bytes(whole[: len(whole) // 2])
    seen: list[int] = []
    with pytest.raises(DataError, match="gzip file is damaged"):
        seen.extend(record.line for record in records(file))
    assert len(seen) > 1000
    file.write_bytes(b"plain")
    with pytest.raises(DataError, match="gzip file is damaged"):
        fields(file)


def test_absent_files_and_odd_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        fields(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="found a folder with nothing"):
        fields(tmp_path)


def test_rows_stream(tmp_path: Path) -> None:
    """The first rows come before the damage at the end is seen."""
    file = write(tmp_path / "a.jsonl", '{"text": "x"}\n' * 1000 + "broken")
    rows = records(file)
    assert [next(rows).line for _ in range(3)] == [1, 2, 3]
    with pytest.raises(DataError, match=r":1001: "):
        list(rows)


def test_public_sets_are_read(shared: Path) -> None:
    counts = {
        "rte/dev.jsonl.gz": 138,
        "sst2/dev.jsonl.gz": 872,
        "cifar10_small/test.npz": 500,
        "movietweetings/test.jsonl.gz": 800,
    }
    assert {name: sum(1 for _ in records(shared / name)) for name in counts} == counts
    assert sum(1 for _ in records(shared / "tinyshakespeare" / "input.txt.gz")) > 5000
