"""What a server asks a client to measure besides its own metrics, as it stands in the messages."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

Rows = Annotated[int, Meta(ge=1, le=1 << 20)]


class Sensing(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How far each layer's output moves when the embeddings of ``rows`` rows move by ``radius`` of their norm."""

    radius: Annotated[float, Meta(gt=0, le=1e3)]
    rows: Rows


class Neurons(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of the rows of B in layers that stay with the client, the ``share`` with the most Fisher information learns; that
    is followed with ``momentum`` from round to round, on ``rows`` rows a round."""

    share: Annotated[float, Meta(gt=0, le=1)]
    momentum: Annotated[float, Meta(ge=0, lt=1)]
    rows: Rows
