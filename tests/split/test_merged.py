"""A base with an adapter added in: transformers alone computes what the run's model computes, in every family."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedsplit.data.batches import Batch
from fedsplit.errors import DataError
from fedsplit.exchange.predict import asked
from fedsplit.lora.adapter import Adapter, ModuleKey
from fedsplit.lora.lowrank import LowRank
from fedsplit.lora.peft_folder import Card
from fedsplit.split import merged
from fedsplit.split.base import TASK_MODELS, Base, open_base
from fedsplit.split.merged import write_model
from fedsplit.state.durable import replaced
from fedsplit.testing.models import FAMILIES, IMAGE, default_task, tiny
from fedsplit.train.exported import Exported
from fedsplit.train.predict import bare_run, local_logits
from fedsplit.train.start import first_state

LABELS = ("one", "two", "three")
IDS = [5, 11, 7, 3, 29, 13]


def learnt(base: Base, task: Any, targets: tuple[str, ...], seed: int = 0) -> Exported:
    """Factors and a head that nobody trained and that all matter."""
    labels = () if task == "causal-lm" else LABELS
    first = first_state(base, bare_run(task, labels, 5, targets))
    draw = np.random.default_rng(seed)
    adapter = {
        key: LowRank(
            draw.normal(0, 0.1, part.B_MR.shape).astype(np.float32),
            draw.normal(0, 0.3, part.A_RN.shape).astype(np.float32),
        )
        for key, part in first.adapter.items()
    }
    head = {name: draw.normal(0, 0.3, value.shape).astype(np.float32) for name, value in first.head.items()}
    return Exported(Card(task=task, model="", base=base.identity, labels=labels), adapter, head)


def inputs(task: Any) -> Batch:
    if task != "image-classification":
        return asked(IDS)
    pixels = np.random.default_rng(1).normal(size=(1, *IMAGE)).astype(np.float32)
    width = (IMAGE[1] // 4) ** 2 + 1
    shape: dict[str, Any] = {"lengths": (width,), "starts": (0,), "width": width}
    return Batch(ids_BT=None, labels=np.zeros(1, np.int64), label_tokens=0, pixels_BCHW=pixels, **shape)


def stock_logits(folder: Path, task: Any) -> np.ndarray:
    model = TASK_MODELS[task].from_pretrained(folder, dtype="auto").eval()
    asks = inputs(task)
    given = torch.tensor([IDS]) if asks.pixels_BCHW is None else torch.from_numpy(asks.pixels_BCHW)
    with torch.no_grad():
        logits = model(given).logits
    found: np.ndarray = (logits[:, -1] if task == "causal-lm" else logits).float().numpy()
    return found


def check(base: Base, one: Exported, folder: Path, **options: Any) -> merged.Written:
    """Write, load with transformers alone, compare."""
    folder.mkdir()
    task = one.card.task
    written = write_model(base, one.adapter, one.head, folder, task=task, labels=one.card.labels, **options)
    here = local_logits(base, one)(inputs(task))
    np.testing.assert_allclose(stock_logits(folder, task), here, rtol=0, atol=1e-5)
    nothing = {key: part * 0.0 for key, part in one.adapter.items()}
    without = local_logits(base, Exported(one.card, nothing, one.head))(inputs(task))
    assert np.abs(here - without).max() > 1e-2, "the adapter does nothing"
    return written


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_alone_gives_the_same_logits(family: str, tmp_path: Path) -> None:
    task = default_task(family)
    base = open_base(str(tiny(tmp_path / "base", family, task=task, layers=2)))
    written = check(base, learnt(base, task, ("all-linear",)), tmp_path / "out")
    stored = open_base(str(tmp_path / "out")).checkpoint.tensors
    assert written.nbytes == sum(one.nbytes for one in stored.values())
    assert stored.keys() <= base.names(task, len(LABELS)).shapes.keys()


def test_a_new_head_on_a_language_model(tmp_path: Path) -> None:
    base = open_base(str(tiny(tmp_path / "base", "qwen2", layers=2)))
    check(base, learnt(base, "classification", ("q_proj",)), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text("utf-8"))
    assert config["architectures"] == ["Qwen2ForSequenceClassification"]
    assert config["id2label"] == {"0": "one", "1": "two", "2": "three"}


@pytest.mark.parametrize("targets", [("v_proj",), ("lm_head",), ("embed_tokens", "q_proj")])
def test_tied_matrices_are_untied_where_one_is_adapted(targets: tuple[str, ...], tmp_path: Path) -> None:
    base = open_base(str(tiny(tmp_path / "base", "llama", layers=2, tie_word_embeddings=True)))
    check(base, learnt(base, "causal-lm", targets), tmp_path / "out")
    tied = open_base(str(tmp_path / "out")).config.tie_word_embeddings
    assert tied == (targets == ("v_proj",))


def test_shards_with_an_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merged, "SHARD_BYTES", 20_000)
    monkeypatch.setattr(merged, "PIECE_BYTES", 500)  # a few rows at a time
    base = open_base(str(tiny(tmp_path / "base", "gpt2", layers=2)))
    written = check(base, learnt(base, "causal-lm", ("c_attn", "c_proj")), tmp_path / "out")
    assert len(written.files) > 2
    assert all((tmp_path / "out" / name).stat().st_size < 30_000 for name in written.files)


def test_rounding_says_what_it_changes(tmp_path: Path) -> None:
    base = open_base(str(tiny(tmp_path / "base", "llama", layers=2)))
    one = learnt(base, "causal-lm", ("q_proj", "v_proj"))
    (tmp_path / "out").mkdir()
    written = write_model(base, one.adapter, {}, tmp_path / "out", task="causal-lm", dtype="bfloat16")
    exact, lost = [], []
    for key, part in one.adapter.items():
        name = f"model.layers.{key.layer}.{key.path}.weight"
        before = base.checkpoint.tensors[name].read(torch.float32).double().numpy()
        after = open_base(str(tmp_path / "out")).checkpoint.tensors[name]
        assert after.dtype == "BF16"
        exact.append(np.sum(part.dense().astype(np.float64) ** 2))
        lost.append(np.sum((after.read(torch.float32).double().numpy() - before - part.dense()) ** 2))
    assert written.rounded == pytest.approx(np.sqrt(sum(lost) / sum(exact)), rel=1e-3)
    assert 1e-4 < written.rounded < 0.1


def test_a_full_disk_is_said_before_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = open_base(str(tiny(tmp_path / "base", "llama", layers=2)))
    nothing: Adapter = {ModuleKey(0, "self_attn.q_proj"): LowRank(np.zeros((24, 0)), np.zeros((0, 24)))}
    monkeypatch.setattr(merged, "free_disk", lambda folder: 1000)
    with pytest.raises(DataError, match=r"takes \d+ MB, 0 MB are free"), replaced(tmp_path / "out") as new:
        write_model(base, nothing, {}, new, task="causal-lm")
    monkeypatch.undo()
    with pytest.raises(DataError, match="cannot be written: No space left"):
        half_written(tmp_path / "out")
    assert not [path for path in tmp_path.iterdir() if path.name != "base"]


def half_written(folder: Path) -> None:
    with replaced(folder) as new:
        (new / "half").write_text("a file")
        raise OSError(28, "No space left on device")
