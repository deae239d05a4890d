"""How much one packet may hold, checked before a byte is allocated for it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bytes and counts of one packet. ``queue`` packets may wait in each direction of one connection."""

    header_bytes: int = 4 << 20
    tensors: int = 16_384
    tensor_bytes: int = 1 << 30
    packet_bytes: int = 2 << 30
    queue: int = 256

    @property
    def frame_bytes(self) -> int:
        """The longest frame that can be legal; a socket drops the connection beyond it."""
        return max(self.header_bytes, self.tensor_bytes)
