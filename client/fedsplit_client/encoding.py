"""Rows become tokens in a process that lives as long as that takes, so that the tokenizer's memory goes with it.

    python -m fedsplit_client.encoding      what is asked comes on standard input, the arrays go to standard output

A tokenizer and what reads files take 7 to 20 MB, which a device without torch has better use for. Nothing touches a
disk: the rows are the owner's.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from fedsplit import errors
from fedsplit.config.run import RunFile
from fedsplit.data.dataset import Dataset
from fedsplit.data.examples import Examples, TruncationReport
from fedsplit.errors import DataError, FedsplitError
from fedsplit_client import fresh

SIZE = 8
"""Bytes of the number that says how long the answer is."""


class Asked(msgspec.Struct):
    """``folder``: the tokenizer's."""

    data: str
    folder: str
    run: RunFile


class Packed(msgspec.Struct, array_like=True):
    """An array."""

    dtype: str
    data: memoryview


class Part(msgspec.Struct):
    """``Examples``, of texts."""

    ids: Packed
    bounds: Packed
    labels: Packed
    types: Packed | None
    per_token: bool


class Answer(msgspec.Struct):
    """Either ``error``, by the name of its class, and ``text``, or the rest. ``pad``: the id to fill up with."""

    error: str = ""
    text: str = ""
    train: Part | None = None
    held_out: Part | None = None
    report: TruncationReport = TruncationReport()
    pad: int = 0


def encoded(data: str, run: RunFile, folder: Path) -> tuple[Dataset, int]:
    """(the rows of ``data`` as tokens, the id to fill up with), of the tokenizer in ``folder``.

    :raises DataError: the rows are wrong. :raises ConfigError: the tokenizer is. :raises FedsplitError: the process
        ended without an answer; the system ends one that takes too much memory.
    """
    with _started() as child:
        assert child.stdin is not None
        assert child.stdout is not None
        asked = msgspec.json.encode(Asked(data, str(folder), run))
        try:
            child.stdin.write(asked)
            child.stdin.close()
            answer = _read(child.stdout)
        except BrokenPipeError:
            answer = None
    if answer is None:
        why = f"ended with {child.returncode}" if child.returncode >= 0 else f"was ended by signal {-child.returncode}"
        raise FedsplitError(f"the process that reads {data} {why}; is there memory enough for the tokenizer?")
    if answer.error:
        raise _error(answer)
    assert answer.train is not None
    assert answer.held_out is not None
    return Dataset(_examples(answer.train), _examples(answer.held_out), answer.report), answer.pad


@contextmanager
def _started() -> Iterator[subprocess.Popen[bytes]]:
    """Ended with the block. In a group of its own: Ctrl-C is for who can say what was kept."""
    child = subprocess.Popen(
        fresh.command("fedsplit_client.encoding"),
        env=fresh.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
        process_group=0,
    )
    with child:
        try:
            yield child
        except BaseException:
            child.kill()
            raise


def _read(stream: Any) -> Answer | None:
    """None where it ended before the last byte."""
    size = _exactly(stream, SIZE)
    content = _exactly(stream, int.from_bytes(size, "big")) if size is not None else None
    return msgspec.msgpack.decode(content, type=Answer) if content is not None else None


def _exactly(stream: Any, size: int) -> bytearray | None:
    """Read into one piece of memory, not into many that are joined."""
    found = bytearray(size)
    view, done = memoryview(found), 0
    while done < size:
        count = stream.readinto(view[done:])
        if not count:
            return None
        done += count
    return found


def _error(answer: Answer) -> FedsplitError:
    kind = getattr(errors, answer.error, DataError)
    found = kind(answer.text) if kind in (DataError, errors.ConfigError) else FedsplitError(answer.text)
    found.exit_code = kind.exit_code
    return cast(FedsplitError, found)


def _examples(part: Part) -> Examples:
    types = None if part.types is None else _array(part.types)
    return Examples(_array(part.ids), _array(part.bounds), _array(part.labels), types, per_token=part.per_token)


def _array(packed: Packed) -> NDArray[Any]:
    return np.frombuffer(packed.data, packed.dtype)


# ---- in the other process --------------------------------------------------------------------------------------------


def _answer(asked: Asked) -> Answer:
    from fedsplit.data.dataset import open_dataset
    from fedsplit.data.tokenizer import load

    try:
        encode = load(asked.folder)
        dataset = open_dataset(asked.data, asked.run, encode)
    except FedsplitError as error:
        return Answer(type(error).__name__, str(error))
    return Answer(
        train=_part(dataset.train), held_out=_part(dataset.held_out), report=dataset.report, pad=encode.pad_id
    )


def _part(examples: Examples) -> Part:
    types = None if examples.types is None else _packed(examples.types)
    return Part(_packed(examples.ids), _packed(examples.bounds), _packed(examples.labels), types, examples.per_token)


def _packed(array: NDArray[Any]) -> Packed:
    return Packed(array.dtype.str, memoryview(array.tobytes()))


def main() -> None:
    asked = msgspec.json.decode(sys.stdin.buffer.read(), type=Asked)
    content = msgspec.msgpack.encode(_answer(asked))
    sys.stdout.buffer.write(len(content).to_bytes(SIZE, "big"))
    sys.stdout.buffer.write(content)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
