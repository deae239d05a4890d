"""The wire: packets, their rules and their links, without a socket.

``messages`` are what both sides say, ``frames`` turns them into bytes and back, ``session`` holds every legal move,
``ledger`` makes a repeated request harmless, ``link`` is the line a device types, ``ends`` the two ends as types.
"""

from __future__ import annotations

from fedsplit.wire.ends import ClientEnd, Incoming, ServerEnd, Tensors
from fedsplit.wire.frames import Frame, Packet, decode, encode, size_of
from fedsplit.wire.keyfile import KeyPair
from fedsplit.wire.limits import Limits
from fedsplit.wire.link import JoinLink
from fedsplit.wire.tensors import WireTensor

__all__ = [
    "ClientEnd",
    "Frame",
    "Incoming",
    "JoinLink",
    "KeyPair",
    "Limits",
    "Packet",
    "ServerEnd",
    "Tensors",
    "WireTensor",
    "decode",
    "encode",
    "size_of",
]
