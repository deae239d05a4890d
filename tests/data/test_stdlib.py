"""The text every machine has: the same on every Python, cut into parts that share nothing."""

from __future__ import annotations

import hashlib
import json
import math
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import msgspec
import pytest

from fedsplit.config.load import loads
from fedsplit.config.run import DataSection
from fedsplit.data import stdlib
from fedsplit.data.partition import Manifest
from fedsplit.data.rows import read


def test_six_balanced_areas() -> None:
    counts = Counter(one.label for one in stdlib.examples())
    assert set(counts) == set(stdlib.AREAS)
    assert max(counts.values()) <= 1.3 * min(counts.values())
    assert min(counts.values()) > 400


def test_parts_share_no_text() -> None:
    parts = {part: {one.text for one in stdlib.examples(part)} for part in ("train", "valid", "test")}  # type: ignore[arg-type]
    total = len(stdlib.examples())
    assert sum(map(len, parts.values())) == total
    assert not parts["train"] & parts["test"]
    assert not parts["train"] & parts["valid"]
    shares = {part: len(texts) / total for part, texts in parts.items()}
    assert shares == pytest.approx({"train": 0.7, "valid": 0.1, "test": 0.2}, abs=0.03)


def test_passages_are_clean() -> None:
    for one in stdlib.examples():
        assert 40 <= len(one.text) <= 280
        assert "\n" not in one.text
        assert "  " not in one.text
        assert not one.text.startswith(">>>")
        assert one.label == next(a for a in stdlib.AREAS if one.module.split(".")[0] in stdlib.MODULES[a].split())


def test_long_docstrings_are_cut_at_sentences() -> None:
    text = (
        "First sentence of it all, quite long indeed. " * 12
        + "\n\n>>> doctest()\n1\n\nAnother paragraph that is a real one."
    )
    found = stdlib.passages(text)
    assert all(len(one) <= 280 for one in found)
    assert all(one.endswith(".") for one in found)
    assert not any("doctest" in one for one in found)
    assert stdlib.passages("Too short.") == []


def test_another_process_gets_the_same_list_without_importing_the_modules() -> None:
    code = (
        "import sys, hashlib\nfrom fedsplit.data import stdlib\nrows = stdlib.examples()\n"
        "assert not {'ftplib', 'imaplib', 'turtle', 'tkinter', 'xmlrpc'} & set(sys.modules)\n"
        "print(hashlib.sha256(repr(rows).encode()).hexdigest())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=240)
    assert done.stdout.strip() == hashlib.sha256(repr(stdlib.examples()).encode()).hexdigest()


def test_the_words_tell_the_area() -> None:
    """Naive Bayes on words gets far above chance (1/6), so the task can be learned from the text."""
    counts: dict[str, Counter[str]] = {area: Counter() for area in stdlib.AREAS}
    for one in stdlib.examples("train"):
        counts[one.label].update(re.findall(r"[a-z]{2,}", one.text.lower()))
    size = len(set().union(*counts.values()))
    totals = {area: sum(found.values()) + 0.5 * size for area, found in counts.items()}

    def guess(text: str) -> str:
        words = re.findall(r"[a-z]{2,}", text.lower())
        return max(counts, key=lambda a: sum(math.log((counts[a][w] + 0.5) / totals[a]) for w in words))

    test = stdlib.examples("test")
    assert sum(guess(one.text) == one.label for one in test) / len(test) > 0.7


def test_the_demos_devices(tmp_path: Path) -> None:
    files = stdlib.write_clients(tmp_path)
    assert list(files.clients) == ["device-1", "device-2", "device-3"]
    run = loads(f'[model]\npath = "x"\ntask = "classification"\nlabels = {json.dumps(stdlib.AREAS)}\n')
    owned: list[str] = []
    seen: set[str] = set()
    for name, file in files.clients.items():
        rows = list(read(file, DataSection(), "classification", run.model.labels))
        manifest = msgspec.json.decode((tmp_path / f"{name}.manifest.json").read_bytes(), type=Manifest)
        assert manifest.rows == len(rows)
        counts = Counter(stdlib.AREAS[int(row.label or 0)] for row in rows)
        mine = [area for area, count in counts.most_common(2)]
        assert 1 - sum(counts[area] for area in mine) / len(rows) == pytest.approx(0.1, abs=0.03)
        owned += mine
        assert not seen & {row.text for row in rows}
        seen |= {row.text for row in rows}
    assert sorted(owned) == sorted(stdlib.AREAS)
    test = list(read(files.test, DataSection(), "classification", run.model.labels))
    assert {row.label for row in test} == set(range(6))
    assert not seen & {row.text for row in test}


@pytest.mark.parametrize("count", [1, 2, 4, 7])
def test_any_number_of_devices_gets_all_of_it(tmp_path: Path, count: int) -> None:
    files = stdlib.write_clients(tmp_path, [f"d{i}" for i in range(count)])
    rows = sum(len(file.read_bytes().splitlines()) for file in files.clients.values())
    assert rows == len(stdlib.examples("train"))


def test_the_corpus_holds_modules_and_topics() -> None:
    documents = stdlib.pydoc_documents()
    assert len(documents) > 400
    assert len({name for name, _ in documents}) == len(documents)
    assert 1_500_000 < sum(len(text) for _, text in documents) < 6_000_000
    assert "contextlib.suppress\nContext manager to suppress specified exceptions" in dict(documents)["contextlib"]
    assert len(stdlib.topics()) > 50
