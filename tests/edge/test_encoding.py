"""Rows read in a process of their own are the rows read here, and what is wrong with them is said as here."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from fedsplit import assets
from fedsplit.config.load import loads
from fedsplit.config.run import RunFile
from fedsplit.data.batches import Batch
from fedsplit.errors import ConfigError, DataError, FedsplitError
from fedsplit.exchange.feed import Feed
from fedsplit_client.edge import EdgeModel
from fedsplit_client.encoding import encoded
from tests.run.conftest import run_file

pytestmark = pytest.mark.skipif(os.name != "posix", reason="elsewhere rows are read in the same process")

TEXTS = ["return the first", "a list of every value " * 12, "or else", "nothing", "in a string of two words"]


def run_of(**settings: object) -> RunFile:
    return loads(run_file({"a": 'topology = "u"'}, **{"data__eval_fraction": 0.4, **settings}))


def model() -> EdgeModel:
    folder = assets.path("pydoc-llama")
    return EdgeModel(folder, folder, 1)


def written(folder: Path, rows: list[dict[str, object]]) -> str:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


def seen(batches: list[Batch]) -> list[tuple[object, ...]]:
    return [(one.ids_BT.tolist(), one.lengths, one.starts, np.asarray(one.labels).tolist()) for one in batches]


CASES: dict[str, tuple[dict[str, object], list[dict[str, object]]]] = {
    "language": ({"model__max_length": 24}, [{"text": text} for text in TEXTS]),
    "nothing held out": ({"data__eval_fraction": 0.0}, [{"text": text} for text in TEXTS]),
    "classes": (
        {"model__task": "classification", "model__labels": ["short", "long"]},
        [{"text": text, "label": ("short", "long")[len(text) > 20]} for text in TEXTS],
    ),
}


@pytest.mark.parametrize(("settings", "rows"), CASES.values(), ids=CASES)
def test_the_batches_are_the_same(tmp_path: Path, settings: dict[str, object], rows: list[dict[str, object]]) -> None:
    run, data = run_of(**settings), written(tmp_path, rows)
    apart, here = model().feed(data, run, "a"), Feed.open(data, run, model().reading(run), "a")
    assert apart.dataset.report == here.dataset.report
    assert apart.dataset.summary == here.dataset.summary
    for mine, theirs in zip(apart.train(0, 3), here.train(0, 3), strict=True):
        assert seen(mine) == seen(theirs)
    assert seen(list(apart.test())) == seen(list(here.test()))


def test_wrong_rows_are_told_with_their_line(tmp_path: Path) -> None:
    data = written(tmp_path, [{"text": "good"}, {"words": "bad"}])
    with pytest.raises(DataError) as here:
        Feed.open(data, run_of(), model().reading(run_of()), "a")
    with pytest.raises(DataError) as apart:
        model().feed(data, run_of(), "a")
    assert str(apart.value) == str(here.value)
    assert ":2: " in str(apart.value)
    with pytest.raises(ConfigError, match=r"no tokenizer\.json"):
        encoded(data, run_of(), tmp_path)


def test_a_process_that_dies_is_no_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the system ends it for the memory it takes."""
    (tmp_path / "sitecustomize.py").write_text("import os\nos.kill(os.getpid(), 9)\n", "utf-8")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    data = written(tmp_path, [{"text": "good"}])
    with pytest.raises(FedsplitError, match="ended by signal 9; is there memory enough for the tokenizer"):
        encoded(data, run_of(), assets.path("pydoc-llama"))
