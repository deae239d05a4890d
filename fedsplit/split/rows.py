"""Which positions of a padded batch are tokens: what travels is packed, what a layer computes on is padded.

Packing is exact: masked positions get no weight in attention and no gradient, so zeros may stand for whatever the
unsplit model holds there. Legend: B samples, T padded width, D model width, N valid tokens of all samples together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fedsplit.errors import DataError


@dataclass(frozen=True, eq=False)
class Rows:
    """The shape of one padded batch. Sample b holds its tokens at ``starts[b] : starts[b] + lengths[b]`` of ``width``.

    Only the embedding needs ``ids_BT`` (int64), ``types_BT`` (int64, sentence pairs) or ``pixels`` (B, C, H, W): a body
    works without them. Raises DataError where a sample does not fit its row or a tensor has another shape.
    """

    ids_BT: Tensor | None
    lengths: tuple[int, ...]
    starts: tuple[int, ...]
    width: int
    pixels: Tensor | None = None
    types_BT: Tensor | None = None

    def __post_init__(self) -> None:
        if not self.lengths or len(self.lengths) != len(self.starts):
            raise DataError(f"{len(self.lengths)} lengths and {len(self.starts)} starts: expected one of each a sample")
        for b, (start, length) in enumerate(zip(self.starts, self.lengths, strict=True)):
            if start < 0 or length < 1 or start + length > self.width:
                raise DataError(f"sample {b}: {length} tokens from position {start} do not fit a row of {self.width}")
        for name in ("ids_BT", "types_BT"):
            given = getattr(self, name)
            if given is not None and tuple(given.shape) != (len(self.lengths), self.width):
                raise DataError(f"{name}: found {tuple(given.shape)}, expected {(len(self.lengths), self.width)}")

    @staticmethod
    def of(ids: Sequence[Sequence[int]], *, pad: int = 0, side: str = "right") -> Rows:
        """Pad token ids to the longest sample. ``side``: where the padding goes, ``right`` or ``left``."""
        lengths = tuple(len(sample) for sample in ids)
        width = max(lengths, default=0)
        starts = tuple(width - length if side == "left" else 0 for length in lengths)
        ids_BT = torch.full((len(ids), width), pad, dtype=torch.int64)
        for b, sample in enumerate(ids):
            ids_BT[b, starts[b] : starts[b] + lengths[b]] = torch.tensor(sample, dtype=torch.int64)
        return Rows(ids_BT, lengths, starts, width)

    @staticmethod
    def images(pixels: Tensor, width: int) -> Rows:
        """A batch of images, ``width`` tokens each (patches and the class token)."""
        return Rows(None, (width,) * pixels.shape[0], (0,) * pixels.shape[0], width, pixels=pixels)

    @property
    def tokens(self) -> int:
        """N, the number of valid tokens."""
        return sum(self.lengths)

    @property
    def padded(self) -> bool:
        return self.tokens < len(self.lengths) * self.width

    @cached_property
    def mask_BT(self) -> Tensor:
        """1 where a token is, 0 at padding (int64)."""
        place_1T = torch.arange(self.width).unsqueeze(0)
        start_B1 = torch.tensor(self.starts).unsqueeze(1)
        end_B1 = start_B1 + torch.tensor(self.lengths).unsqueeze(1)
        return ((place_1T >= start_B1) & (place_1T < end_B1)).to(torch.int64)

    @cached_property
    def positions(self) -> Tensor:
        """Position of each token in its own sample, 0 at left padding: (1, T), or (B, T) where starts differ from 0."""
        place_1T = torch.arange(self.width).unsqueeze(0)
        if not any(self.starts):
            return place_1T
        return (place_1T - torch.tensor(self.starts).unsqueeze(1)).clamp(min=0)

    @cached_property
    def last_B(self) -> Tensor:
        """Index of each sample's last token."""
        return torch.tensor([start + length - 1 for start, length in zip(self.starts, self.lengths, strict=True)])

    @cached_property
    def flat_N(self) -> Tensor:
        """Index of every valid token in the flattened (B * T) batch, sample after sample."""
        return self.mask_BT.flatten().nonzero().squeeze(1)


def pack(h_BTD: Tensor, rows: Rows) -> Tensor:
    """(B, T, D) to (N, D): valid tokens only, sample after sample. Without padding a view."""
    flat = h_BTD.reshape(-1, *h_BTD.shape[2:])
    return flat.index_select(0, rows.flat_N.to(flat.device)) if rows.padded else flat


def unpack(h_ND: Tensor, rows: Rows) -> Tensor:
    """(N, D) to (B, T, D), zeros at padding; (N,) to (B, T). Without padding a view.

    Raises DataError when there are more or fewer tokens than ``rows`` says.
    """
    if h_ND.shape[0] != rows.tokens:
        raise DataError(f"found {h_ND.shape[0]} tokens, expected {rows.tokens}: the lengths of the samples summed up")
    shape = (len(rows.lengths), rows.width, *h_ND.shape[1:])
    if not rows.padded:
        return h_ND.reshape(shape)
    flat = h_ND.new_zeros(shape[0] * shape[1], *h_ND.shape[1:])
    return flat.index_copy_(0, rows.flat_N.to(flat.device), h_ND).view(shape)
