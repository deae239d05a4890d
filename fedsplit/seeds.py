"""Every random draw is a keyed argument: the same key gives the same numbers on every machine.

There are no global generators. A key names what is drawn, e.g. ``seed(run_seed, round, client, "order")``.
"""

from __future__ import annotations

import hashlib

import numpy as np


def seed(*key: int | str) -> int:
    """Hash ``key`` to an integer in [0, 2**63).

    Parts are length-prefixed, so ``("ab", "c")`` and ``("a", "bc")`` differ, and typed, so ``1`` and ``"1"`` differ.
    """
    digest = hashlib.blake2b(digest_size=8)
    for part in key:
        raw = f"{type(part).__name__}:{part}".encode()
        digest.update(len(raw).to_bytes(4, "little") + raw)
    return int.from_bytes(digest.digest(), "little") >> 1


def generator(*key: int | str) -> np.random.Generator:
    """A NumPy generator (Philox: the same stream on every platform) keyed by ``key``."""
    return np.random.Generator(np.random.Philox(seed(*key)))
