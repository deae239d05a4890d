"""The server's identity: a key pair that devices pin, and the invitation that lets them in. Made on first start."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from pathlib import Path

import zmq
from zmq.utils import z85

from fedsplit.errors import ConfigError, Problem
from fedsplit.wire.keyfile import KeyPair, load_or_make, read_secret, write_secret
from fedsplit.wire.link import INVITE_BYTES, JoinLink


@dataclass(frozen=True)
class ServerKeys:
    """``invite`` (16 bytes) is compared with Hello's, in hex."""

    pair: KeyPair
    invite: bytes = field(repr=False)

    def link(self, host: str, port: int) -> JoinLink:
        """What a device must type to reach this server at ``host:port``."""
        return JoinLink(host, port, self.pair.public, self.invite)

    def invited(self, invite: str) -> bool:
        """Whether Hello's ``invite`` (hex) is ours; takes the same time for every wrong answer."""
        return secrets.compare_digest(invite.encode(), self.invite.hex().encode())


def load_keys(folder: Path) -> ServerKeys:
    """The keys kept in ``folder`` (``server.json`` and ``invite``), made there on first use, mode 0600.

    :raises ConfigError: a file is damaged, unreadable, or others may read it.
    """
    pair = load_or_make(folder / "server.json", make_pair)
    path = folder / "invite"
    if not path.exists():
        write_secret(path, secrets.token_hex(INVITE_BYTES).encode())
    text = read_secret(path)
    try:
        invite = bytes.fromhex(text.decode())
    except ValueError:
        invite = b""
    if len(invite) != INVITE_BYTES:
        fix = "delete it: a new invitation is made, and devices must be given the new join link"
        raise ConfigError([Problem(str(path), "a damaged invitation", "16 bytes in hex", fix)])
    return ServerKeys(pair, invite)


def make_pair() -> tuple[bytes, bytes]:
    """A fresh Curve25519 pair (public, secret), 32 bytes each."""
    public, secret = zmq.curve_keypair()
    return z85.decode(public), z85.decode(secret)
