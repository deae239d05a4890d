"""The device's identity: a key pair of its own, kept in its state folder, by which servers know it again."""

from __future__ import annotations

from pathlib import Path

import zmq
from zmq.utils import z85

from fedsplit.wire.keyfile import KeyPair, load_or_make


def load_keys(folder: Path) -> KeyPair:
    """The pair kept in ``folder/client.json``, made there on first use, mode 0600.

    :raises ConfigError: the file is damaged, unreadable, or others may read it.
    """
    return load_or_make(folder / "client.json", make_pair)


def make_pair() -> tuple[bytes, bytes]:
    """A fresh Curve25519 pair (public, secret), 32 bytes each."""
    public, secret = zmq.curve_keypair()
    return z85.decode(public), z85.decode(secret)
