"""A method is tried on three made-up clients before any device trains for it.

What a merge function does is known only by running it: one that cannot take the ranks that devices may have, gives
another shape or raises would otherwise end the run at its first round, after the devices' work.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePath

from fedsplit.errors import ConfigError, FedsplitError, Problem
from fedsplit.lora.adapter import ModuleKey
from fedsplit.lora.lowrank import LowRank
from fedsplit.method.own_code import FAILURES
from fedsplit.method.parts import Ask
from fedsplit.method.record import ClientUpdate, GlobalState, Method, Phases, part_name
from fedsplit.seeds import generator
from fedsplit.train.round import for_client, run_round

_SHAPES = {ModuleKey(0, "rehearsal.narrow"): (7, 11), ModuleKey(1, "rehearsal.wide"): (13, 5)}
"""(M, N), all different, as is the rank: a transposed product cannot pass."""
_RANK = 3
_EXAMPLES = {"first": 2, "second": 3, "third": 5}
_MIXED = {"first": 3, "second": 2, "third": 1}
"""Ranks where devices may have different ones."""


def rehearse(method: Method | Phases, name: str, *, mixed: bool = False) -> None:
    """Two rounds of every phase on small random factors. ``name``: the run file's ``method.name``.

    ``mixed``: with clients of different ranks. What merging does to the rank is its own affair: every client starts
    the next round from factors of its own rank.
    :raises ConfigError: merging fails, or changes the shape of a module.
    """
    phases = zip(method.starts, method.methods, strict=True) if isinstance(method, Phases) else [(0, method)]
    for start, phase in phases:
        state = replace(GlobalState.first(_factors("global", dict.fromkeys(_SHAPES, _RANK))), round=start)
        for _ in range(2):
            state = _round(state, phase, name, _MIXED if mixed else {})


def _round(state: GlobalState, method: Method, name: str, ranks: Mapping[str, int]) -> GlobalState:
    try:
        updates = [_update(client, state, method, ranks.get(client, _RANK)) for client in _EXAMPLES]
        after = run_round(state, updates, method)
    except FedsplitError:
        raise
    except FAILURES as error:
        where = _line_in(error, name)
        message = f"a round of method {name!r} with {len(updates)} made-up clients fails: {type(error).__name__}: "
        raise ConfigError(f"{message}{error}", where) from error
    for key, part in (*after.adapter.items(), *after.patch.items()):
        if part.shape != _SHAPES[key]:
            (m, n), (rows, columns) = _SHAPES[key], part.shape
            found = f"parts of {m} x {n} become {rows} x {columns}"
            fix = "keep the rows of B and the columns of A as they are; only the rank may change"
            raise _wrong(name, f"merge = {part_name(method.merge)}: {found}", "the same shape", fix)
    return after


def _update(client: str, state: GlobalState, method: Method, rank: int) -> ClientUpdate:
    """As if ``client`` had trained what it would be given."""
    ask = Ask(round=state.round, client=client, seed=0, layers=len(_SHAPES), rank=rank)
    ranks = {key: part.rank for key, part in for_client(state, method, ask=ask).items()}
    adapter = _factors(client, ranks)
    return ClientUpdate(client=client, examples=_EXAMPLES[client], base_version=state.base_version, adapter=adapter)


def _wrong(name: str, found: str, expected: str, fix: str) -> ConfigError:
    return ConfigError([Problem("method.name", f"{name!r}, {found}", expected, fix)])


def _factors(client: str, ranks: Mapping[ModuleKey, int]) -> dict[ModuleKey, LowRank]:
    made = {}
    for key, (m, n) in _SHAPES.items():
        source, rank = generator("rehearsal", client, str(key)), ranks[key]
        b_MR, a_RN = (source.standard_normal(size).astype("float32") for size in ((m, rank), (rank, n)))
        made[key] = LowRank(b_MR, a_RN)
    return made


def _line_in(error: BaseException, name: str) -> str:
    """``FILE:LINE`` of the last call in the method's own file; empty where the method is not from a file."""
    own = PurePath(name if name.endswith(".py") else name.rpartition(":")[0]).name
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).name == own]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""
