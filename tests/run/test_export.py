"""The result of a run, asked in every way there is: by peft alone, from the exported folder, through the split."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from fedsplit import assets
from fedsplit.cli.main import run as command
from fedsplit.config.load import loads
from fedsplit.data.batches import Batch
from fedsplit.errors import ConfigError
from fedsplit.exchange.predict import asked
from fedsplit.split.rows import Rows as Padded
from fedsplit.train.exported import read_card, read_peft
from fedsplit.train.exporting import export
from fedsplit.train.predict import local_logits
from fedsplit.train.tokenizer import load_tokenizer
from fedsplit_client.remote import remote_predictor
from tests.run.conftest import Rows, run_file
from tests.run.party import LAPTOP, Party, base_of
from tests.run.processes import Stage

MakeRows = Callable[[str], dict[str, Rows]]
CLIENTS = {"a": 'topology = "u"\ncut = [1, 3]', "b": 'topology = "v"\ncut = [4, 6]', "c": 'topology = "local"'}
TEXTS = ("Return the sum of all items", "The class of an error that a closed file raises when it is read again")
TASKS: dict[str, dict[str, object]] = {
    "causal-lm": {"lora__rank": 4, "train__learning_rate": 0.02},
    "classification": {"model__task": "classification", "model__labels": ["short", "long"], "lora__rank": 4},
    "folds": {"method__name": "flora", "lora__rank": 4, "train__learning_rate": 0.02},
    "odd scale": {"lora__rank": 3, "lora__targets": ["q_proj", "down_proj"], "lora__rslora": True},
}


@dataclass(frozen=True)
class Done:
    """A finished run, exported."""

    stage: Stage
    run: Path
    adapter: Path
    task: str
    link: str
    tolerance: float
    """0 where alpha / r is a power of two: then it moves between the factors and the scale without rounding."""


@pytest.fixture(scope="module", params=TASKS)
def done(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, rows: MakeRows) -> Iterator[Done]:
    """Trained in this process; its run directory is then served by a process of its own."""
    settings = TASKS[request.param]
    folder = tmp_path_factory.mktemp("run")
    text = run_file(CLIENTS, **settings, run__dir=str(folder / "run"))
    with Party(text, rows("abc"), folder) as party:
        party.start().finish()
    export(folder / "run", folder / "adapter")
    with Stage(folder, text, {}) as stage:
        stage.server = stage.serve("--resume", "--keep-open")
        yield Done(
            stage,
            folder / "run",
            folder / "adapter",
            loads(text).model.task,
            stage.link(),
            2e-5 if {"lora__rslora", "method__name"} & settings.keys() else 0.0,
        )
        stage.server.signal(signal.SIGINT)
        stage.server.end(expected=130)


def test_peft_alone_gives_the_logits_of_the_folder(done: Done) -> None:
    for text in TEXTS:
        by_peft, here = peft_logits(done, text), folder_logits(done, text)
        np.testing.assert_allclose(here, by_peft, rtol=0, atol=done.tolerance)
        assert not np.allclose(here, base_logits(done, text), atol=1e-3), "the adapter does nothing"


def test_who_may_read_one_file_may_read_all(done: Done) -> None:
    assert len({path.stat().st_mode for path in done.adapter.iterdir()}) == 1


def test_the_merged_model_alone_gives_the_logits_of_the_folder(done: Done, tmp_path: Path) -> None:
    card = export(done.run, tmp_path / "model", merge=True)
    kind = AutoModelForCausalLM if done.task == "causal-lm" else AutoModelForSequenceClassification
    model = kind.from_pretrained(tmp_path / "model")
    for text in TEXTS:
        merged, here = stock_logits(model, done, text, tmp_path / "model"), folder_logits(done, text)
        np.testing.assert_allclose(merged, here, rtol=1e-6, atol=1e-5)
    assert card.lost == 0


def test_a_lower_rank_says_what_it_loses(done: Done, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, one = base_of("pydoc-llama"), tmp_path / "one"
    with pytest.raises(SystemExit) as end:
        command(["export", str(done.run), "-o", str(one), "--rank", "1"])
    assert not end.value.code
    exact, near = (read_peft(folder, base, read_card(done.adapter).task).adapter for folder in (done.adapter, one))
    assert {part.rank for part in near.values()} == {1}
    off = sum((exact[key] - near[key]).norm() ** 2 for key in exact)
    share = (off / sum(part.norm() ** 2 for part in exact.values())) ** 0.5
    assert read_card(one).lost == pytest.approx(share, rel=1e-4)
    assert f"rank changed what was learnt by {share:.2g} of its length" in capsys.readouterr().out


def test_only_its_own_folders_are_replaced(done: Done, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(done.run, out, rank=2)
    export(done.run, out)
    assert read_card(out).lost == 0
    for other in ("notes.txt", "config.json"):
        (out / other).write_text("mine")
        with pytest.raises(ConfigError, match=rf"a folder with other files \({other}\)"):
            export(done.run, out)
        (out / other).unlink()
    with pytest.raises(ConfigError, match="a folder with other files"):
        export(done.run, out, merge=True)
    with pytest.raises(ConfigError, match="--rank: found 0, expected 1 or more"):
        export(done.run, tmp_path / "new", rank=0)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("topology", ["u", "w", "v", "local"])
def test_the_split_gives_the_logits_of_the_folder(done: Done, tmp_path: Path, topology: str) -> None:
    with remote_predictor(done.link, name=topology, topology=topology, profile=LAPTOP, state=tmp_path) as predictor:
        for text in TEXTS:
            there, here = predictor.logits(asked_of(text)), folder_logits(done, text)
            np.testing.assert_allclose(there, here, rtol=0, atol=done.tolerance)


def test_the_command_says_the_same_both_ways(done: Done, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = predicted(capsys, done.adapter)
    for topology in ("u", "v"):
        where = ("--topology", topology, "--name", f"asks-{topology}", "--state", tmp_path)
        there = predicted(capsys, done.link, *where, "--profile", done.stage.profile)
        for one, other in zip(here, there, strict=True):
            assert one.get("completion") == other.get("completion")
            assert one.get("scores") == pytest.approx(other.get("scores"), abs=1e-5)


def predicted(capsys: pytest.CaptureFixture[str], *source: object) -> list[dict[str, Any]]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        command(["predict", *map(str, source), *TEXTS, "--tokens", "8", "--json"])
    out, error = capsys.readouterr()
    assert not end.value.code, error
    found: list[dict[str, Any]] = json.loads(out)["predictions"]
    return found


def padded(text: str) -> Padded:
    return Padded.of([ids_of(text)])


def asked_of(text: str) -> Batch:
    return asked(ids_of(text))


def ids_of(text: str) -> list[int]:
    return load_tokenizer(assets.path("pydoc-llama")).encode(text).ids


def folder_logits(done: Done, text: str) -> NDArray[np.float32]:
    base = base_of("pydoc-llama")
    exported = read_peft(done.adapter, base, read_card(done.adapter).task)
    return local_logits(base, exported)(asked_of(text))


def peft_logits(done: Done, text: str) -> NDArray[np.float32]:
    return stock_logits(PeftModel.from_pretrained(stock(done), str(done.adapter)), done, text)


def base_logits(done: Done, text: str) -> NDArray[np.float32]:
    return stock_logits(stock(done), done, text)


def stock(done: Done) -> Any:
    folder = assets.path("pydoc-llama")
    if done.task == "causal-lm":
        return AutoModelForCausalLM.from_pretrained(folder)
    return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)


def stock_logits(model: Any, done: Done, text: str, tokenizer: Path | None = None) -> NDArray[np.float32]:
    """(1, C), or (1, V) at the last token."""
    encode = AutoTokenizer.from_pretrained(tokenizer or assets.path("pydoc-llama"))
    ids = torch.tensor([encode(text)["input_ids"]])
    with torch.no_grad():
        logits = model.eval()(ids).logits
    found: NDArray[np.float32] = (logits[:, -1] if done.task == "causal-lm" else logits).numpy()
    return found
