"""Arrow and Parquet as the datasets library and others write them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fedsplit.config.run import DataSection
from fedsplit.data.records import describe, records
from fedsplit.data.rows import read
from fedsplit.errors import DataError

ROWS = [{"text": f"text {i}", "label": i % 2} for i in range(2500)]


def test_without_pyarrow_the_extra_is_named(tmp_path: Path) -> None:
    (tmp_path / "train.parquet").write_bytes(b"PAR1")
    code = f"""
import sys
sys.modules["pyarrow"] = None
from fedsplit.data.records import records
from fedsplit.errors import MissingExtra
try:
    list(records({str(tmp_path)!r}))
except MissingExtra as error:
    assert "train.parquet" in str(error) and "fedsplit[data]" in str(error)
    print("refused")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=240)
    assert done.stdout == "refused\n", done.stderr


@pytest.fixture
def arrow() -> Any:
    return pytest.importorskip("pyarrow", reason="pip install pyarrow")


@pytest.fixture
def parquet(arrow: Any) -> Any:
    return pytest.importorskip("pyarrow.parquet", reason="pip install pyarrow")


def fields(path: Path | str) -> list[dict[str, Any]]:
    return [dict(record.fields) for record in records(path)]


def test_single_files(tmp_path: Path, arrow: Any, parquet: Any) -> None:
    table = arrow.Table.from_pylist(ROWS)
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=700)
    assert fields(tmp_path / "a.parquet") == ROWS
    for new, name in ((arrow.ipc.new_file, "file.arrow"), (arrow.ipc.new_stream, "stream.arrow")):
        with new(str(tmp_path / name), table.schema) as writer:
            writer.write_table(table, max_chunksize=900)
        assert fields(tmp_path / name) == ROWS


def test_a_repository_with_splits(tmp_path: Path, arrow: Any, parquet: Any) -> None:
    (tmp_path / "set" / "data").mkdir(parents=True)
    for i, part in enumerate((ROWS[:1000], ROWS[1000:2000])):
        parquet.write_table(
            arrow.Table.from_pylist(part), tmp_path / "set" / "data" / f"train-0000{i}-of-00002.parquet"
        )
    assert fields(tmp_path / "set") == ROWS[:2000]
    parquet.write_table(arrow.Table.from_pylist(ROWS[2000:]), tmp_path / "set" / "data" / "test-00000-of-00001.parquet")
    with pytest.raises(DataError, match=r"found 2 splits; expected the name of one: set#test, set#train"):
        fields(tmp_path / "set")
    assert fields(f"{tmp_path / 'set'}#test") == ROWS[2000:]
    with pytest.raises(DataError, match='found no split "dev"'):
        fields(f"{tmp_path / 'set'}#dev")


def test_a_damaged_file(tmp_path: Path, parquet: Any) -> None:
    for name in ("a.parquet", "a.arrow"):
        (tmp_path / name).write_bytes(b"PAR1 nothing else")
        with pytest.raises(DataError, match="file is damaged"):
            fields(tmp_path / name)


def test_what_the_datasets_library_saves(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="pip install datasets")
    whole = datasets.Dataset.from_list(ROWS)
    whole.save_to_disk(str(tmp_path / "one"))
    assert fields(tmp_path / "one") == ROWS
    assert describe(tmp_path / "one") == "a Hugging Face datasets folder"
    datasets.DatasetDict({"train": whole, "test": whole.select(range(5))}).save_to_disk(str(tmp_path / "two"))
    assert fields(f"{tmp_path / 'two'}#test") == ROWS[:5]
    assert [row.label for row in read(tmp_path / "one", DataSection(), "classification", ("a", "b"))][:3] == [0, 1, 0]
