"""A device's own result as a peft adapter: what it had at the end of a run, shared factors and its own together.

Nothing but what lies in its state directory is needed, no torch, no server, no base model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from fedsplit.errors import ConfigError, Problem
from fedsplit.lora.adapter import unflatten
from fedsplit.lora.peft_folder import CARD, Card, Facts, refuse_other_files, write_adapter
from fedsplit.state.checkpoints import Checkpoint
from fedsplit.state.durable import replaced
from fedsplit.state.personal import BESIDE, ClientRun, RunInfo

FACTS = "peft"
"""Where a round's notes say what its adapter is of; only the end of a run has all of it."""


def is_own(folder: Path) -> bool:
    """Whether ``folder`` is a device's, of one run or of all, and not a server's run directory."""
    return not (folder / "run.toml").exists() and ((folder / "info.json").is_file() or (folder / "runs").is_dir())


def is_whole(folder: Path) -> bool:
    """Whether ``export_own`` finds all layers there, at the end of one run."""
    try:
        _found(folder, "")
    except ConfigError:
        return False
    return True


def export_own(folder: Path, out: Path, run: str = "") -> Card:
    """Write the adapter that this device computed with at the end of a run.

    ``folder``: what ``fedsplit join`` names at its end, or a state directory; ``run`` chooses where that has several.
    Raises ConfigError: nothing there, or only a part (the server has the other layers), or ``out`` holds other
    files; and as ``write_adapter``.
    DataError where the disk refuses.
    """
    refuse_other_files(out)
    kept, end, facts = _found(folder, run)
    # Beside the factors lies what a run that goes on would need.
    adapter, head = unflatten({name: array for name, array in end.arrays.items() if not name.startswith(BESIDE)})
    card = Card(
        task=facts.task,
        model=facts.model,
        base=facts.base,
        labels=facts.labels,
        max_length=facts.max_length,
        run=kept.info.run,
        round=end.round,
        metrics=end.meta["after"],
        client=kept.info.client,
    )
    with replaced(out) as new:
        write_adapter(adapter, head, facts, new)
        (new / CARD).write_bytes(msgspec.json.format(msgspec.json.encode(card), indent=2))
    return card


def notes(facts: Facts, after: dict[str, float]) -> dict[str, Any]:
    """For the notes of the last round: what ``export_own`` needs beside its arrays. ``after``: the device's metrics."""
    return {FACTS: msgspec.to_builtins(facts), "after": after}


def _found(folder: Path, run: str) -> tuple[ClientRun, Checkpoint, Facts]:
    kept = _chosen(folder, run)
    end = _end(kept)
    facts: Facts = msgspec.convert(end.meta[FACTS], Facts)
    _refuse_part(facts, kept.path)
    return kept, end, facts


def _chosen(folder: Path, run: str) -> ClientRun:
    if (folder / "info.json").is_file():
        return ClientRun(folder, _info(folder))
    found = [ClientRun(path.parent, _info(path.parent)) for path in sorted((folder / "runs").glob("[!.]*/info.json"))]
    wanted = [one for one in found if run in ("", one.info.run)]
    if len(wanted) != 1:
        names = ", ".join(str(one.path) for one in found) or "none"
        fix = f"export one of them by its folder: {names}" if wanted else "run fedsplit join first"
        raise ConfigError([Problem(str(folder), f"{len(wanted)} runs", "one", fix)])
    return wanted[0]


def _info(folder: Path) -> RunInfo:
    try:
        return msgspec.json.decode((folder / "info.json").read_bytes(), type=RunInfo)
    except (OSError, msgspec.MsgspecError) as error:
        path = str(folder / "info.json")
        raise ConfigError([Problem(path, str(error), "the file as fedsplit join wrote it")]) from None


def _end(kept: ClientRun) -> Checkpoint:
    for round in reversed(kept.rounds()):
        one = kept.load(round, exact=True)
        if one is not None and FACTS in one.meta:
            return one
    fix = "let the run come to its end on this device (fedsplit join)"
    found = "a run that has not ended here" if kept.rounds() else "nothing of a run"
    raise ConfigError([Problem(str(kept.path), found, "the end of a run", fix)])


def _refuse_part(facts: Facts, folder: Path) -> None:
    if facts.elsewhere:
        what = f"layers {', '.join(map(str, facts.elsewhere))}"
        fix = 'the server has it: ask through fedsplit predict, or take policy.topologies = ["local"] for the next run'
        raise ConfigError([Problem(str(folder), f"a part of the model, without {what}", "all of it", fix)])
