"""A run's result as a folder that works without fedsplit: a plain peft adapter, or the base with it added in.

A folder appears when it is complete. One that is there already is replaced where it came from here and nobody has put
anything else into it.
"""

from __future__ import annotations

import math
from pathlib import Path

import msgspec

from fedsplit.config.run import RunFile
from fedsplit.errors import ConfigError, Problem
from fedsplit.lora.adapter import Adapter, ModuleKey
from fedsplit.lora.lowrank import LowRank
from fedsplit.lora.peft_folder import ADAPTER_FILES, CARD, Card, refuse_other_files
from fedsplit.method.record import GlobalState
from fedsplit.split.base import DOWNLOADS, Base, open_base
from fedsplit.split.lora import save_peft
from fedsplit.split.merged import Width, write_model
from fedsplit.state.durable import replaced
from fedsplit.train.exported import model_folder, of_run

MODEL_FILES = frozenset({CARD, *DOWNLOADS})


def export(
    folder: Path,
    out: Path,
    round: int | None = None,
    group: str = "",
    *,
    rank: int | None = None,
    merge: bool = False,
    dtype: Width | None = None,
) -> Card:
    """Write the run's adapter as a peft folder, loadable by ``peft.PeftModel.from_pretrained`` on the untouched base.

    What rounds have folded into the base is in it: modules then have a higher rank than those that trained. ``group``:
    whose adapter, where every group has one. ``rank``: no module has more; the nearest such adapter, ``Card.lost`` says
    how near. ``merge``: write the base with the adapter added in instead, a model folder for ``from_pretrained`` alone,
    its weights as ``dtype`` (None: the run's).

    :raises ConfigError: as ``exported.of_run``; ``out`` holds something else; a rank below 1.
    :raises DataError: the disk has no room, or refuses; nothing is there then that was not there before.
    """
    if rank is not None and rank < 1:
        raise ConfigError([Problem("--rank", str(rank), "1 or more")])
    if dtype is not None and not merge:
        raise ConfigError([Problem("--dtype", dtype, "--merge with it: an adapter is always float32")])
    refuse_other_files(out, MODEL_FILES if merge else ADAPTER_FILES)
    run, state, metrics = of_run(folder, round, group)
    base = open_base(model_folder(run.model.path))
    adapter, lost = lowered(state.learnt, rank)
    with replaced(out) as new:
        if merge:
            width: Width = dtype or run.model.dtype
            task, labels = run.model.task, run.model.labels
            written = write_model(base, adapter, state.head, new, task=task, labels=labels, dtype=width)
            lost = math.hypot(lost, written.rounded)
        else:
            save_peft(adapter, state.head, base, run.lora, new, task=run.model.task)
        card = _card(run, state, base, metrics, lost)
        (new / CARD).write_bytes(msgspec.json.format(msgspec.json.encode(card), indent=2))
    return card


def lowered(adapter: Adapter, rank: int | None) -> tuple[dict[ModuleKey, LowRank], float]:
    """The nearest adapter of at most ``rank`` a module, and what it lost, as a share of its length (Frobenius)."""
    if rank is None or all(part.rank <= rank for part in adapter.values()):
        return dict(adapter), 0.0
    found, lost, length = {}, [0.0], [0.0]
    for key, part in adapter.items():
        exact = part.astype("float64")
        near, off = exact.nearest(rank)
        found[key] = near.astype(part.dtype)
        lost.append(off**2)
        length.append(exact.norm() ** 2)
    return found, math.sqrt(math.fsum(lost) / math.fsum(length)) if any(length) else 0.0


def _card(run: RunFile, state: GlobalState, base: Base, metrics: dict[str, float | None], lost: float) -> Card:
    return Card(
        task=run.model.task,
        model=run.model.path,
        base=base.identity,
        labels=run.model.labels,
        max_length=run.model.max_length,
        run=run.run.name,
        round=state.round,
        metrics=metrics,
        lost=lost,
    )
