"""With this folder on the path Python ends itself as soon as it has said an event: ``DIES_AT="SIGNAL EVENT"``.

Who waits for an event in another process and then kills that one is late on a busy machine: the round may be over.
EVENT is a JSON object of fields, ``{"event": "StepDone", "round": 1}``; a line with the same values is the one. Python
imports a module of this name at its start, also where a process becomes another one.
"""

from __future__ import annotations

import json
import os
import sys
from typing import TextIO


class Mortal:
    """Standard output that sends the signal after the line."""

    def __init__(self, stream: TextIO, number: int, event: dict[str, object]) -> None:
        self._stream, self._number, self._event = stream, number, event

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        written = self._stream.write(text)
        if self._event and text.startswith("{"):
            said = json.loads(text)
            if all(said.get(name) == value for name, value in self._event.items()):
                self._event = {}
                self._stream.flush()
                os.kill(os.getpid(), self._number)
        return written


if "DIES_AT" in os.environ:
    number, _, event = os.environ["DIES_AT"].partition(" ")
    sys.stdout = Mortal(sys.stdout, int(number), json.loads(event))  # type: ignore[assignment]
