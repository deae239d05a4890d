"""What this device can find out before its owner is asked: how many rows, how long they are, what is to be fetched.

Everything happens here; nothing is sent. Without the base model there is no tokenizer: then rows are only counted.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from fedsplit.config.run import RunFile
from fedsplit.data.batches import split
from fedsplit.exchange.feed import Feed
from fedsplit.plan.traffic import Known
from fedsplit_client.backend import Backend, Opened
from fedsplit_client.session import Offer


@dataclass(frozen=True)
class Ahead:
    """``offer`` with what is known; ``opened`` and ``feed`` where the base model is here already."""

    offer: Offer
    opened: Opened | None = None
    feed: Feed | None = None


def look_ahead(
    backend: Backend, offer: Offer, run: RunFile, data: str | Path, model: str, folder: Path, name: str
) -> Ahead:
    """``run``: as planned for this client; ``model``: a base model of the owner's; ``folder``: the run's state here.

    :raises DataError: the data is wrong. :raises ConfigError: ``model`` is another one.
    """
    opened = backend.here(offer, model)
    if opened is None:
        from fedsplit.data.rows import read

        rows = sum(1 for _ in read(data, run.data, run.model.task, run.model.labels))
        held_out = len(split(rows, run.data.eval_fraction, run.run.seed)[1])
        fetch = backend.to_fetch(offer, folder)
        known = Known(eval_rows=held_out, download_bytes=fetch, rounds_done=offer.round)
        return Ahead(replace(offer, known=known))
    feed = Feed.open(data, run, opened.reading(run), name)
    summary = feed.dataset.summary
    known = Known(eval_rows=summary.eval_examples, row_tokens=summary.tokens_mean, rounds_done=offer.round)
    return Ahead(replace(offer, known=known), opened, feed)
