"""What a device was asked to do: all that ``join`` is given, and what its owner agreed to, fit for another process.

A device without torch is often one without memory. What is needed to read a command, to measure, to plan and to ask
stays in a process that has done so; the training goes on in a fresh one, which needs none of it.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from fedsplit.devices.limits import Limits
from fedsplit.devices.profile import DeviceProfile
from fedsplit.errors import InternalError
from fedsplit_client.session import Offer


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """The arguments of ``join``, by its names. ``own``: the file of this machine's own profile, when ``profile`` is
    what that said. ``agreed``: the offer that the owner said yes to; a plan that shows more is asked about again."""

    link: str
    data: str
    name: str = ""
    topology: str = ""
    model: str = ""
    profile: DeviceProfile | None = None
    own: str = ""
    device: str = "cpu"
    backend: str = ""
    tag: str = ""
    state: str = ""
    learning: bool = False
    measure_link: bool = True
    limits: Limits | None = None
    agreed: Offer | None = None


HandOver = Callable[[Wish], None]
"""Lets another process go on with a wish whose owner has agreed; nothing is open and nothing is locked here then. It
returns only where that is not possible: then this process goes on by itself."""


class Elsewhere(BaseException):
    """Another process goes on. No error: who hears of it at the server would take the client for gone."""

    def __init__(self, wish: Wish) -> None:
        super().__init__("another process goes on")
        self.wish = wish


def pack(wish: Wish) -> bytes:
    """For ``unpack`` in another process of the same version."""
    return msgspec.json.encode(wish)


def unpack(packed: bytes) -> Wish:
    """Raises InternalError for what ``pack`` of this version has not made."""
    try:
        return msgspec.json.decode(packed, type=Wish)
    except msgspec.MsgspecError as error:
        raise InternalError(f"what one process of fedsplit handed to the next cannot be read: {error}") from None
