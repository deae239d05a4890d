"""From an exception to one message and a documented exit code (``docs/exit-codes.md``), without a traceback."""

from __future__ import annotations

import os
import re
import sys
import traceback

from fedsplit.errors import FedsplitError, InternalError, MissingExtra, OutOfMemory

INTERRUPTED = 130

EXTRAS = {
    "torch": "torch",
    "transformers": "torch",
    "peft": "torch",
    "bitsandbytes": "server",
    "onnx": "server",
    "onnxscript": "server",
    "scipy": "server",
    "onnxruntime": "edge",
    "matplotlib": "plot",
    "datasets": "data",
    "PIL": "data",
    "jinja2": "data",
}
"""Which extra brings which package, by the name that a failed import reports."""

_SIZE = r"\s+([\d.]+)\s*([KMGT]i?B|bytes?)"
_ALLOCATION = re.compile(r"(?:tried to|unable to|failed to) allocate" + _SIZE, re.IGNORECASE)
_GPU_FREE = re.compile(r"of which" + _SIZE + r" is free", re.IGNORECASE)
_UNITS = {"b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_SMALLER = "try a smaller batch, more micro-batches, or a plan that holds fewer layers here"


def tell_interrupted(interrupt: BaseException) -> int:
    """Say what is kept after Ctrl-C; the exit code. Only the verb knows what it had done
    (``fedsplit.cli.interrupts``)."""
    _say("interrupted", str(interrupt) or "stopped as you asked")
    return INTERRUPTED


def nobody_reads() -> int:
    """Whoever read has gone: `fedsplit plan … | head` has what it wanted. Quiet, with rich's code; Python flushes once
    more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1


def tell(error: Exception, *, debug: bool = False) -> int:
    """Say what went wrong; the exit code."""
    if debug:
        traceback.print_exception(error)
    shown = translate(error)
    _say("error", str(shown) or type(shown).__name__)
    return shown.exit_code


def translate(error: Exception) -> FedsplitError:
    """The error of our own tree that says what ``error`` means to a user."""
    if isinstance(error, FedsplitError):
        return error
    if is_out_of_memory(error):
        return out_of_memory(error)
    if isinstance(error, ImportError):
        return _missing(error)
    if isinstance(error, OSError):
        return FedsplitError(str(error))
    return InternalError(
        f"fedsplit made a mistake ({type(error).__name__}: {error}); nothing you typed is to blame. "
        "Run it again with --debug and report what it shows"
    )


def is_out_of_memory(error: BaseException) -> bool:
    """MemoryError, CUDA's, or the RuntimeError of torch's CPU allocator; torch need not be imported to know."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error).lower()
    # torch's words on POSIX, on Windows, and those of a GPU.
    known = ("can't allocate memory", "not enough memory", "out of memory")
    return isinstance(error, RuntimeError) and any(words in text for words in known)


def out_of_memory(error: BaseException) -> FedsplitError:
    """Need and have: what the allocator was asked for and what is free (on the GPU, if that is what ran out)."""
    import psutil

    text = str(error)
    need_bytes, free_bytes = _bytes(_ALLOCATION, text), _bytes(_GPU_FREE, text)
    have_bytes = int(psutil.virtual_memory().available) if free_bytes is None else free_bytes
    if need_bytes is not None:
        return OutOfMemory("an allocation", need_bytes, have_bytes, _SMALLER)
    shown = FedsplitError(f"out of memory; {have_bytes / 1e6:,.0f} MB are free now; {_SMALLER}")
    shown.exit_code = OutOfMemory.exit_code
    return shown


def _bytes(pattern: re.Pattern[str], text: str) -> int | None:
    found = pattern.search(text)
    return None if found is None else int(float(found[1]) * _UNITS[found[2][0].lower()])


def _missing(error: ImportError) -> FedsplitError:
    package = (error.name or "").partition(".")[0]
    if package in EXTRAS:
        return MissingExtra(package, EXTRAS[package])
    if package in ("fedsplit", "fedsplit_server", "fedsplit_client"):
        return FedsplitError(f"{error}: this installation is not whole; install fedsplit again with pip")
    return InternalError(f"{error}; reinstall fedsplit, and report it if that does not help")


def _say(kind: str, text: str) -> None:
    from rich.console import Console
    from rich.text import Text

    sys.stdout.flush()
    line = Text.assemble((f"{kind}: ", "bold red" if kind == "error" else "bold yellow"), text)
    Console(stderr=True, soft_wrap=True, highlight=False).print(line)
