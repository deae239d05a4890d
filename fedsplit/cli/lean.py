"""A fresh process in place of this one, for the training of a device without torch.

What a command line takes (its parser, the probe, the planner behind the question) is 20 MB that training never needs,
and Python gives no module back. So ``fedsplit join`` does all that comes before the training, up to the owner's yes,
and then becomes ``python -m fedsplit.cli.lean``: the same process to a shell, a service manager and ``kill``, with the
same output and exit codes. What it was asked for is handed over in a file that has no name.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from pathlib import Path

from fedsplit_client import fresh

WAITS = (signal.SIGINT,)
"""What comes in between waits until the new process can say what was kept."""
OWN = "own process"
"""What a context of the command line holds when the process is the command's own: then it may become another one."""


def go_lean(packed: bytes, out: Path | None, flags: list[str]) -> None:
    """Become the process that goes on with a packed wish. Returns where that fails.

    ``flags``: of ``json``, ``yes`` and ``debug`` those that are on.
    """
    with tempfile.TemporaryFile() as file:
        file.write(packed)
        file.seek(0)
        os.set_inheritable(file.fileno(), True)
        words = [str(file.fileno()), str(out or ""), *flags]
        command = fresh.command("fedsplit.cli.lean", *words)
        sys.stdout.flush()
        sys.stderr.flush()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, WAITS)
        try:
            os.execve(command[0], command, fresh.environment())
        except OSError:  # no memory for it, or the interpreter is gone: it works here, too
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def main(argv: list[str]) -> int:
    """The other end of ``go_lean``; the exit code."""
    _without_openssl()
    from fedsplit.cli.errors import nobody_reads, tell, tell_interrupted
    from fedsplit.cli.interrupts import if_interrupted
    from fedsplit.cli.joining import BEGUN, take_part
    from fedsplit_client.wish import unpack

    file, out, *flags = argv
    try:
        with os.fdopen(int(file), "rb") as handed:
            wish = unpack(handed.read())
        with if_interrupted(lambda: BEGUN):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, WAITS)
        take_part(wish, out=Path(out) if out else None, yes="yes" in flags, json="json" in flags)
    except KeyboardInterrupt as interrupt:
        return tell_interrupted(interrupt)
    except BrokenPipeError:
        return nobody_reads()
    except Exception as error:
        return tell(error, debug="debug" in flags)
    return 0


def _without_openssl() -> None:
    """Hashes come from Python's own modules then, the same ones: 4 MB less, and nothing here makes a TLS connection."""
    from importlib.util import find_spec

    inside = ("_sha2",) if sys.version_info >= (3, 12) else ("_sha256", "_sha512")
    if all(find_spec(name) is not None for name in ("_md5", "_sha1", "_sha3", "_blake2", *inside)):
        sys.modules.setdefault("_hashlib", None)  # type: ignore[arg-type]  # what Python takes for "there is none"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
