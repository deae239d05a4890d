"""What is true after Ctrl-C: said by the verb that was interrupted, because only it knows what it had done."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


class Interrupted(KeyboardInterrupt):
    """Ctrl-C; the text says what is kept and how to go on."""


@contextmanager
def if_interrupted(say: Callable[[], str]) -> Iterator[None]:
    """Turn Ctrl-C into ``Interrupted`` with what ``say`` answers then."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(say()) from None


@contextmanager
def terminated_like_interrupted() -> Iterator[None]:
    """Whoever ends a run with SIGTERM (a service, a queue's time limit) leaves no process of its own behind."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread hears of signals
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def kept_in(folder: Path) -> str:
    """What a run directory holds: the newest round, or nothing."""
    from fedsplit.state import checkpoints
    from fedsplit.state.rundir import RunDir

    rounds = checkpoints.rounds(RunDir(folder).checkpoints)
    if not rounds:
        return "nothing was trained yet; the same command starts from the beginning"
    what = f"rounds up to {max(rounds)} are" if max(rounds) else "the state before the first round is"
    return f"{what} saved in {folder}; the same command with --resume goes on from there"
