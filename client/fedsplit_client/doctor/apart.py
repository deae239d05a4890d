"""Python code run in a process of its own, with a deadline: whatever it does to itself, this process lives on."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# A process that kills itself shall not fill the disk with an image of its memory.
NO_CORE = """
try:
    import resource
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
except (ImportError, ValueError, OSError):
    pass
"""


@dataclass(frozen=True)
class Outcome:
    """``code``: the exit status, negative for a signal, None for one that had to be stopped at its deadline."""

    code: int | None
    said: str
    complained: str

    @property
    def last_words(self) -> str:
        """The last line of its complaint, which names the error."""
        lines = [line for line in self.complained.splitlines() if line.strip()]
        return lines[-1].strip() if lines else ""


def run_apart(code: str, words: Sequence[str] = (), *, deadline_s: float) -> Outcome:
    """Run ``code`` with the arguments ``words`` by this Python and its paths; it is ended at the deadline."""
    # -P: the working directory may hold files named like packages.
    command = [sys.executable, "-P", "-c", NO_CORE + code, *words]
    paths = os.pathsep.join(str(Path(path).absolute()) for path in sys.path if path)
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        said, complained = child.communicate(timeout=deadline_s)
        code_found: int | None = child.returncode
    except subprocess.TimeoutExpired:
        child.kill()
        said, complained = child.communicate()
        code_found = None
    return Outcome(code_found, said.decode(errors="replace"), complained.decode(errors="replace"))
