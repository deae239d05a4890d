"""Several inputs of one command, read one by one and refused together: nobody mends them one start at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from fedsplit.errors import ConfigError, Problem

T = TypeVar("T")


class Gathered:
    """Collects what is wrong with each input; ``refuse`` raises it all."""

    def __init__(self) -> None:
        self._errors: list[tuple[str, ConfigError]] = []

    def take(self, where: str, read: Callable[[], T]) -> T | None:
        """What ``read`` gives; None where it raises a ConfigError, which is kept. ``where``: the input's path."""
        try:
            return read()
        except ConfigError as error:
            self._errors.append((where, error))
            return None

    def refuse(self, source: str = "") -> None:
        """Raise ConfigError with every problem, its path begun by its input's; return where there is none.

        A problem that several inputs have is said of the first one.
        """
        errors = list(_new(self._errors))
        if len(errors) == 1:
            raise errors[0][1]
        problems = [problem for where, error in errors for problem in _placed(where, error)]
        if problems:
            raise ConfigError(problems, source)


def _new(errors: Iterable[tuple[str, ConfigError]]) -> Iterator[tuple[str, ConfigError]]:
    """The errors without the problems of those before."""
    seen: set[tuple[str, Problem]] = set()
    for where, error in errors:
        problems = [problem for problem in error.problems if (error.source, problem) not in seen]
        seen |= {(error.source, problem) for problem in problems}
        if len(problems) == len(error.problems):
            yield where, error
        elif problems:
            yield where, ConfigError(problems, error.source)


def _placed(where: str, error: ConfigError) -> list[Problem]:
    place = " ".join(part for part in (where, error.source) if part)
    if not error.problems:
        return [Problem(where or error.source, str(error), "a file that can be read")]
    return [problem._replace(path=_path(where, place, problem.path)) for problem in error.problems]


def _path(where: str, place: str, inner: str) -> str:
    """A name that nobody knows is the input itself, not a key in it."""
    if not place:
        return inner
    return where if inner in ("device", "fleet") else f"{place}: {inner}"
