"""One tensor on the wire: a dtype name, a shape and raw little-endian bytes. No torch: bf16 travels as 16-bit words."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DTYPES: dict[str, np.dtype[np.generic]] = {
    "f32": np.dtype("<f4"),
    "f16": np.dtype("<f2"),
    "bf16": np.dtype("<u2"),
    "i32": np.dtype("<i4"),
    "i64": np.dtype("<i8"),
    "u8": np.dtype("u1"),
}
"""Wire name to the NumPy dtype of the same width. ``bf16`` has no NumPy type: its bits are unsigned words."""


@dataclass(frozen=True)
class WireTensor:
    """``data`` is a C-contiguous array of ``DTYPES[dtype]`` and of the tensor's shape (bf16: its bits).

    ``codec`` names what the bytes mean when they are not the values themselves. Once sent, ``data`` must not be
    written to: the socket reads it later, from its own thread, without a copy.
    """

    dtype: str
    data: NDArray[np.generic]
    codec: str = "raw"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    @property
    def nbytes(self) -> int:
        return self.data.nbytes

    @staticmethod
    def of(array: NDArray[np.generic]) -> WireTensor:
        """Wrap a NumPy array of any wire dtype except bf16 (no copy when already contiguous and little-endian)."""
        for name, dtype in DTYPES.items():
            if name != "bf16" and array.dtype == dtype:
                return WireTensor(name, np.ascontiguousarray(array, dtype))
        raise TypeError(f"dtype {array.dtype} does not travel; the wire carries {', '.join(DTYPES)}")

    @staticmethod
    def bf16(array: NDArray[np.float32]) -> WireTensor:
        """Round float32 to bfloat16, nearest even; NaN stays NaN."""
        bits = np.ascontiguousarray(array, "<f4").view("<u4")
        rounded = bits + 0x7FFF + ((bits >> 16) & 1)
        quiet_nan = (bits >> 16) | 0x40
        return WireTensor("bf16", np.where(np.isnan(array), quiet_nan, rounded >> 16).astype("<u2"))

    def numpy(self) -> NDArray[np.generic]:
        """The values as NumPy; bf16 widens to float32."""
        if self.dtype == "bf16":
            return (self.data.astype("<u4") << 16).view("<f4")
        return self.data
