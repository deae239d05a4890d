"""A run's result: which state of which checkpoint it is, and a peft folder read back with alpha/r absorbed.

``fedsplit.train.exporting`` writes such folders.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from fedsplit import assets as shipped
from fedsplit.config.load import loads
from fedsplit.config.run import RunFile, Task
from fedsplit.errors import ConfigError, Problem
from fedsplit.lora.adapter import Adapter, Head, ModuleKey
from fedsplit.lora.lowrank import LowRank
from fedsplit.lora.peft_folder import CARD, Card
from fedsplit.method.of_run import method_of
from fedsplit.method.record import GlobalState, keeps_own
from fedsplit.split.base import Base
from fedsplit.split.lora import key_of
from fedsplit.state.rundir import RunDir
from fedsplit.train.kept import state_of


@dataclass(frozen=True)
class Exported:
    """A finished adapter in memory. ``rank`` is the largest there is."""

    card: Card
    adapter: Adapter
    head: Head

    @property
    def rank(self) -> int:
        return max((factors.rank for factors in self.adapter.values()), default=1)


def model_folder(path: str) -> str:
    """A shipped name becomes its folder; everything else is a folder or a hub id already."""
    return str(shipped.path(path)) if path in shipped.NAMES else path


def of_run(
    folder: Path, round: int | None = None, group: str = ""
) -> tuple[RunFile, GlobalState, dict[str, float | None]]:
    """Run file, state and metrics of a run's best checkpoint (by validation; ``round`` asks for another).

    :raises ConfigError: the folder holds no run, or nothing was committed yet; clients have factors of their own that
        are not here; there are groups, and ``group`` is none of them.
    """
    here = RunDir(folder)
    newest = here.load() if here.run_toml.is_file() else None
    if newest is None:
        found = "no run" if not here.run_toml.is_file() else "a run without a checkpoint"
        raise ConfigError([Problem(str(folder), found, "the run directory that fedsplit serve named at its end")])
    chosen = newest.meta["selection"]["best_round"] if round is None else round
    kept = newest if chosen is None else here.load(chosen, exact=True)
    if kept is None:
        raise ConfigError([Problem("--round", str(chosen), "a round whose checkpoint was kept, or leave it out")])
    run = loads(here.run_toml.read_text("utf-8"), str(here.run_toml))
    return run, _one(run, state_of(kept), group), dict(newest.meta["best_metrics"])


def _one(run: RunFile, state: GlobalState, group: str) -> GlobalState:
    """The state that has the asked adapter as its own."""
    if keeps_own(method_of(run)):
        fix = "on a device that holds all layers, export the folder that fedsplit join names at its end"
        found = f"a run of {run.method.name}, in which every client has a part of the adapter for itself"
        raise ConfigError([Problem(str(run.run.dir or run.run.name), found, "a run with one adapter for all", fix)])
    if group not in (state.groups or [""]):
        expected = f"one of {', '.join(state.groups)}" if state.groups else "none: this run has one adapter for all"
        raise ConfigError([Problem("--group", group or "none", expected)])
    return state.of(group)


def read_card(folder: Path) -> Card:
    """:raises ConfigError: the folder is no exported adapter."""
    try:
        return msgspec.json.decode((folder / CARD).read_bytes(), type=Card)
    except FileNotFoundError:
        raise ConfigError([Problem(str(folder), f"no {CARD}", "a folder written by fedsplit export")]) from None
    except msgspec.MsgspecError as error:
        raise ConfigError([Problem(str(folder / CARD), str(error), "the file as fedsplit export wrote it")]) from None


def read_peft(folder: Path, base: Base, task: Task) -> Exported:
    """A peft LoRA folder as an adapter.

    :raises ConfigError: files are missing, or it is no LoRA adapter.
    """
    card = read_card(folder)
    try:
        config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
        tensors = load_file(folder / "adapter_model.safetensors")
    except FileNotFoundError as error:
        raise ConfigError([Problem(str(folder), f"no {Path(error.filename).name}", "a peft adapter folder")]) from None
    names = base.names(task, len(card.labels) or None)
    layers_path = f"{names.prefix}.{base.family.layers}"
    adapter: dict[ModuleKey, LowRank] = {}
    head: dict[str, NDArray[Any]] = {}
    for name, value in tensors.items():
        plain = name.removeprefix("base_model.model.")
        for a, b in ((".lora_A.weight", ".lora_B.weight"), (".lora_embedding_A", ".lora_embedding_B")):
            if plain.endswith(a):
                module = plain.removesuffix(a)
                b_MR = _matrix(tensors[name.removesuffix(a) + b])
                scale = np.float32(_scale(config, module, b_MR.shape[1]))
                adapter[key_of(module, layers_path)] = LowRank(b_MR * scale, _matrix(value))
                break
        else:
            if ".lora_" not in plain:
                head[plain] = value.astype(np.float32)
    return Exported(card, adapter, head)


def _matrix(array: NDArray[Any]) -> NDArray[np.float32]:
    return array.reshape(array.shape[0], -1).astype(np.float32)


def _scale(config: dict[str, Any], module: str, rank: int) -> float:
    """peft's alpha/r of one module, alpha/sqrt r under rsLoRA."""
    patterns = config.get("alpha_pattern") or {}
    alpha = next((value for key, value in patterns.items() if module.endswith(key)), config["lora_alpha"])
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)
