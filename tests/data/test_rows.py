"""Which columns a task reads, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fedsplit.config.run import DataSection, Task
from fedsplit.data.rows import Row, read
from fedsplit.errors import DataError


def rows(
    tmp_path: Path, data: list[dict[str, Any]], task: Task = "causal-lm", labels: tuple[str, ...] = (), **section: str
) -> list[Row]:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in data), encoding="utf-8")
    return list(read(file, DataSection(**section), task, labels))  # type: ignore[arg-type]


def test_language_models_find_their_columns(tmp_path: Path) -> None:
    assert rows(tmp_path, [{"id": 1, "text": "x"}])[0].text == "x"
    row = rows(tmp_path, [{"prompt": "q", "completion": "a"}])[0]
    assert (row.text, row.completion) == ("q", "a")
    row = rows(tmp_path, [{"mr": "name[X]", "ref": "X is."}])[0]
    assert (row.text, row.completion) == ("name[X]", "X is.")
    talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    assert rows(tmp_path, [{"messages": talk, "text": "x"}])[0].messages == tuple(talk)
    talk = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    assert [one["role"] for one in rows(tmp_path, [{"conversations": talk}])[0].messages] == ["user", "assistant"]


def test_an_instruction_takes_its_context_along(tmp_path: Path) -> None:
    data = [{"instruction": "Sum up.", "context": c, "response": "ok"} for c in ("A long story.", "")]
    assert [row.text for row in rows(tmp_path, data)] == ["Sum up.\n\nA long story.", "Sum up."]


def test_templates_over_columns(tmp_path: Path) -> None:
    data = [{"title": "Rio {x}", "genres": ["Comedy", "Western"], "rating": 9}]
    row = rows(tmp_path, data, "regression", text="{title}: {genres}", label="rating")[0]
    assert (row.text, row.label) == ("Rio {x}: Comedy, Western", 9.0)
    with pytest.raises(DataError, match=r'expected "titel".*did you mean "title"'):
        rows(tmp_path, data, "regression", text="{titel}", label="rating")


def test_pairs(tmp_path: Path) -> None:
    row = rows(tmp_path, [{"premise": "p", "hypothesis": "h", "label": 1}], "classification", ("yes", "no"))[0]
    assert (row.text, row.pair, row.label) == ("p", "h", 1)
    row = rows(tmp_path, [{"a": "p", "b": "h", "y": "no"}], "classification", ("yes", "no"),
               text="a", text_pair="b", label="y")[0]  # fmt: skip
    assert (row.text, row.pair, row.label) == ("p", "h", 1)


@pytest.mark.parametrize(("value", "wanted"), [("spam", 1), (1, 1), ("1", 1), (True, 1), (0.0, 0), ("0", 0)])
def test_labels_are_names_or_ids(tmp_path: Path, value: object, wanted: int) -> None:
    assert rows(tmp_path, [{"text": "x", "label": value}], "classification", ("ham", "spam"))[0].label == wanted


def test_a_label_name_that_is_a_number_wins_over_the_id(tmp_path: Path) -> None:
    assert rows(tmp_path, [{"text": "x", "label": "1"}], "classification", ("1", "0"))[0].label == 0


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (2, r"found 2; expected 0 to 1 \(ham, spam\)"),
        (-1, "found -1; expected 0 to 1"),
        ("7", "found 7"),
        ("spma", 'did you mean "spam"'),
        (None, "found None"),
        (0.5, "found 0.5"),
        ([1], r"found \[1\]"),
    ],
)
def test_labels_out_of_range(tmp_path: Path, value: object, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        rows(tmp_path, [{"text": "x", "label": 0}, {"text": "x", "label": value}], "classification", ("ham", "spam"))
    assert caught.value.line == 2


@pytest.mark.parametrize(
    ("data", "task", "words"),
    [
        (
            [{"body_text": "x"}],
            "causal-lm",
            r'found the columns body_text; expected one of text, .*\[data\] text = "…"',
        ),
        ([{"text": ""}], "causal-lm", "empty text"),
        ([{"text": None}], "causal-lm", "found None; expected a text"),
        ([{"text": 3}], "causal-lm", "found 3; expected a text"),
        ([{"text": "x"}, {"other": "y"}], "causal-lm", "which earlier rows have"),
        ([{"text": "x"}], "regression", "expected one of label"),
        ([{"text": "x", "label": "high"}], "regression", "expected a finite number"),
        ([{"text": "x", "label": float("nan")}], "regression", "."),
        ([{"messages": "hello"}], "causal-lm", "expected a list such as"),
        ([{"messages": [{"role": "user", "content": "q"}]}], "causal-lm", "no message of the role assistant"),
        ([{"messages": [{"role": "boss", "content": "q"}]}], "causal-lm", "message 0 with role 'boss'"),
    ],
)
def test_rows_that_are_refused(tmp_path: Path, data: list[dict[str, Any]], task: Task, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        rows(tmp_path, data, task)
    assert caught.value.line == len(data)


def test_a_named_column_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r'expected "txt", which .data. text names; did you mean "text"'):
        rows(tmp_path, [{"text": "x"}], text="txt")
