"""Which classes are found in a file, and which columns are none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedsplit.data.labels import infer_labels
from fedsplit.errors import DataError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "rows.jsonl"


def write(file: Path, *labels: object, **more: list[str]) -> Path:
    rows = [{"text": "x", "label": label} | {k: v[i] for k, v in more.items()} for i, label in enumerate(labels)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return file


@pytest.mark.parametrize(
    ("labels", "wanted"),
    [
        (("spam", "ham"), ("ham", "spam")),
        ((2, 0), ("0", "1", "2")),
        (("1", 1.0, "1.", "0.0", "+1", "01"), ("0", "1")),
        (("²", "m"), ("m", "²")),
        (("1e3", "٣"), ("1e3", "٣")),
        ((True, False), ("False", "True")),
        ((999,), tuple(str(i) for i in range(1000))),
    ],
)
def test_names_and_ids(file: Path, labels: tuple[object, ...], wanted: tuple[str, ...]) -> None:
    assert infer_labels([write(file, *labels)]) == wanted


def test_ids_take_their_names(file: Path) -> None:
    assert infer_labels([write(file, 1, 0, 1, label_name=["dog", "cat", "dog"])]) == ("cat", "dog")


@pytest.mark.parametrize("label", [999_999_999, 1000, -1, "-3", 0.5, "2.5", ".5", "9" * 400])
def test_ids_that_are_none(file: Path, label: object) -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl:2: found the label .*; expected an id from 0 to 999") as error:
        infer_labels([write(file, 0, label)])
    assert str(label) in str(error.value)
    assert "regression" in str(error.value)


def test_columns_without_classes(file: Path) -> None:
    with pytest.raises(DataError, match="expected one kind"):
        infer_labels([write(file, "spam", 1)])
    with pytest.raises(DataError, match="more than 1000 different labels"):
        infer_labels([write(file, *(f"text {i}" for i in range(1001)))])
    with pytest.raises(DataError, match="found no rows"):
        infer_labels([])
