"""Long-lived keys in a file that only their owner can read. Making them is left to the sockets' layer."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from fedsplit.errors import ConfigError, Problem
from fedsplit.wire.link import KEY_BYTES

MakePair = Callable[[], tuple[bytes, bytes]]
"""Gives a fresh (public, secret) pair, 32 bytes each."""


@dataclass(frozen=True)
class KeyPair:
    """A Curve25519 pair, raw bytes. The secret is never printed."""

    public: bytes
    secret: bytes = field(repr=False)

    @property
    def name(self) -> str:
        """The public key in hex: how the other side knows the owner."""
        return self.public.hex()


class _Stored(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    public: str
    secret: str


def load_or_make(path: Path, make: MakePair) -> KeyPair:
    """The pair kept in ``path``; made by ``make`` and written there on first use, mode 0600.

    :raises ConfigError: the file is damaged, cannot be read or written, or others may read it.
    """
    if not path.exists():
        public, secret = make()
        text = msgspec.json.encode(_Stored(public.hex(), secret.hex()))
        try:
            write_secret(path, text)
        except OSError as error:
            raise ConfigError([Problem(str(path), str(error.strerror), "a folder that keys can be kept in")]) from None
    return _load(path)


def write_secret(path: Path, content: bytes) -> None:
    """Write ``content`` for the owner's eyes only, whole or not at all; an existing file stays as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    handle = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        _publish(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def _publish(aside: Path, path: Path) -> None:
    """Give the finished file its name unless another process was first."""
    try:
        os.link(aside, path)
    except FileExistsError:
        return
    except OSError:  # a file system without hard links
        aside.replace(path)


def read_secret(path: Path) -> bytes:
    """The file's content.

    :raises ConfigError: it cannot be read, or other users of this machine can read it too.
    """
    try:
        mode = path.stat().st_mode
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError([Problem(str(path), str(error.strerror), "a file with keys")]) from None
    if os.name == "posix" and mode & (stat.S_IRWXG | stat.S_IRWXO):
        found = f"mode {stat.S_IMODE(mode):04o}, so others on this machine may read the key"
        raise ConfigError([Problem(str(path), found, "mode 0600", f"chmod 600 {path}")])
    return content


def _load(path: Path) -> KeyPair:
    content = read_secret(path)
    try:
        stored = msgspec.json.decode(content, type=_Stored)
        pair = KeyPair(bytes.fromhex(stored.public), bytes.fromhex(stored.secret))
    except (msgspec.MsgspecError, ValueError):
        pair = KeyPair(b"", b"")
    if (len(pair.public), len(pair.secret)) != (KEY_BYTES, KEY_BYTES):
        fix = "put back a good copy, or delete it: new keys are made, and whoever knew the old ones must be told"
        raise ConfigError([Problem(str(path), "a damaged key file", "two keys of 32 bytes in hex", fix)])
    return pair
