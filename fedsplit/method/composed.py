"""The ``[method]`` section of a run file as one method: a name with options, ``but`` with stock parts, and phases."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from msgspec.structs import replace

from fedsplit.config.run import MethodSection, PhaseSection
from fedsplit.errors import ConfigError, Problem
from fedsplit.method.check import check
from fedsplit.method.record import Method, Phases, phases
from fedsplit.method.registry import find
from fedsplit.method.shelf import parts_from

T = TypeVar("T")


def composed(section: MethodSection, rounds: int = 0, folder: Path | None = None) -> Method | Phases:
    """The method of a run of ``rounds`` (0: not known). ``folder``: where files are looked up; None refuses them.

    Raises ConfigError on unknown names, options and parts, and on phases that never come or come twice, all at once;
    IncompatibleParts where parts or phases contradict each other.
    """
    problems: list[Problem] = []
    first = _kept(lambda: _one(section, folder), problems)
    later = {}
    for index, phase in enumerate(section.phases):
        path = f"method.phases[{index}]"
        problems += _when(phase, index, section, rounds)
        asked = phase if phase.name else _as_above(phase, section, sound=first is not None)
        made = _kept(partial(_one, asked, folder), problems, path)
        if made is not None:
            later[phase.round] = made
    problems += [] if not later else _nested({0: first, **later})
    if problems:
        raise ConfigError(problems)
    assert first is not None
    # What nests was refused above: each of them is one method.
    whole = phases({0: first, **later}) if later else first  # type: ignore[dict-item]
    check(whole)
    return whole


def _as_above(phase: PhaseSection, section: MethodSection, *, sound: bool) -> PhaseSection:
    """A phase without a name: the method above, with what the phase changes. What is wrong above (not ``sound``) is
    said there, once."""
    options, parts = (section.options, section.but) if sound else ({}, {})
    return replace(phase, name=section.name, options={**options, **phase.options}, but={**parts, **phase.but})


def _one(section: MethodSection | PhaseSection, folder: Path | None) -> Method | Phases:
    problems: list[Problem] = []
    made = _kept(lambda: find(section.name, folder).build(section.options), problems)
    parts = _kept(lambda: parts_from(section.but), problems)
    if problems or made is None or parts is None:
        raise ConfigError(problems)
    changed: Method | Phases = made.but(**parts) if parts else made
    return changed


def _when(phase: PhaseSection, index: int, section: MethodSection, rounds: int) -> list[Problem]:
    """A phase starts once, after round 0 and before the run's end."""
    path = f"method.phases[{index}].round"
    if phase.round < 1:
        return [Problem(path, str(phase.round), "1 or more", "[method] itself is in force from round 0")]
    if rounds and phase.round >= rounds:
        return [Problem(path, str(phase.round), f"below train.rounds = {rounds}", "this phase would never come")]
    if phase.round in [one.round for one in section.phases[:index]]:
        return [Problem(path, f"{phase.round} a second time", "one phase from a round on", "remove one of them")]
    return []


def _nested(made: dict[int, Method | Phases | None]) -> list[Problem]:
    fix = "leave the phases to that method, or name the methods that it is made of"
    return [
        Problem("method.phases", f"{one.name}, which has phases of its own, from round {start}", "methods without", fix)
        for start, one in made.items()
        if isinstance(one, Phases)
    ]


def _kept(make: Callable[[], T], problems: list[Problem], path: str = "method") -> T | None:
    """What ``make`` gives; None after its problems were noted, with paths below ``path``."""
    try:
        return make()
    except ConfigError as error:
        if not error.problems:  # the text of a file that does not run
            raise
        problems += [one._replace(path=f"{path}.{one.path.removeprefix('method.')}") for one in error.problems]
        return None
