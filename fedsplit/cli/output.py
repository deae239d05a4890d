"""Where a verb's events go: a view for people, or one JSON line each for another program."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from fedsplit.cli.lines import Lines, may_move
from fedsplit.events import Emit, Event, to_json


@contextmanager
def view(title: str, as_json: bool, live: bool = True) -> Iterator[Emit]:
    """The ``Emit`` of a verb. With ``as_json`` every event is a line on standard output."""
    if as_json:
        yield _print_json
        return
    if not (live and may_move()):
        with Lines(lambda said: line(said.text)) as emit:
            yield emit
        return
    from fedsplit.cli.display import Display

    with Display("auto", title=title) as emit:
        yield emit


def line(text: str, *, error: bool = False) -> None:
    """One line as it is, on standard output or standard error, seen at once."""
    stream = sys.stderr if error else sys.stdout
    stream.write(text + "\n")
    stream.flush()


def _print_json(event: Event) -> None:
    sys.stdout.write(to_json(event) + "\n")
    sys.stdout.flush()
