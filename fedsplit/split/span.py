"""A span: which part of a model a segment holds, and which parameters that is."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from fedsplit.errors import ConfigError, InternalError
from fedsplit.split.families import Family


class Absent(nn.Module):
    """Stands where another process holds a part; every other layer keeps its number."""

    def forward(self, *args: object, **kwargs: object) -> Tensor:
        raise InternalError("this segment does not hold the layer it was asked to run")


class Span(NamedTuple):
    """Layers [lo, hi) but ``skips``, with the embedding, with the final norm and the head. The whole model:
    (0, L, True, True)."""

    lo: int
    hi: int
    embeds: bool = False
    heads: bool = False
    skips: frozenset[int] = frozenset()

    @property
    def layers(self) -> tuple[int, ...]:
        """Those it has, in the order in which they run."""
        return tuple(layer for layer in range(self.lo, self.hi) if layer not in self.skips)

    def check(self, num_layers: int) -> None:
        """Raises ConfigError where the span is empty of order or outside the model."""
        if not 0 <= self.lo <= self.hi <= num_layers:
            raise ConfigError(f"layers [{self.lo}, {self.hi}) are not within the model's [0, {num_layers})")


EMBEDDING, HEAD = -1, -2
"""Parts of a model besides its layers, which are numbered from 0."""


def part_of(name: str, family: Family, prefix: str) -> int:
    """The part a parameter or module belongs to: a layer's number, ``EMBEDDING`` or ``HEAD``."""
    inside = name.removeprefix(f"{prefix}.")
    if inside == name:
        return HEAD
    if inside.startswith(f"{family.layers}."):
        return int(inside.removeprefix(f"{family.layers}.").partition(".")[0])
    if any(inside == module or inside.startswith(f"{module}.") for module in family.embeddings):
        return EMBEDDING
    return HEAD


def holds(span: Span, part: int) -> bool:
    """Whether the span has this part."""
    if part == EMBEDDING:
        return span.embeds
    return span.heads if part == HEAD else span.lo <= part < span.hi and part not in span.skips
