"""Sizes as people type them: ``20GB``, ``512 MiB``, ``1.5g``."""

from __future__ import annotations

import re

from fedsplit.errors import ConfigError, Problem

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?\s*", re.IGNORECASE)


def parse_size(text: str, flag: str) -> int:
    """Bytes of a size.

    :raises ConfigError: it is none, or zero.
    """
    match = _SIZE.fullmatch(text)
    nbytes = int(float(match[1]) * _UNITS[(match[2] or "").lower()]) if match else 0
    if nbytes <= 0:
        raise ConfigError([Problem(flag, repr(text), "a size such as 20GB or 512MiB")])
    return nbytes
