"""The end of a run on a device: all that it computes with is kept, and what makes a peft adapter of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedsplit.lora.adapter import flatten
from fedsplit.lora.peft_folder import Facts
from fedsplit.plan.card import card
from fedsplit.state.own_adapter import notes
from fedsplit.state.personal import ClientRun
from fedsplit_client.session import Offer
from fedsplit_client.worker import Result


def keep_end(
    kept: ClientRun, offer: Offer, config: Mapping[str, Any], result: Result, meta: Mapping[str, object]
) -> None:
    """All that this device computes with, with what ``fedsplit export`` needs to make a peft adapter of it. ``config``:
    the base model's config.json."""
    model = offer.run.model
    facts = Facts.of(offer.run, offer.plan, card(config, model.task, len(model.labels)), offer.base)
    arrays = flatten(result.adapter, result.head) | result.beside
    kept.save(result.round, arrays, {**meta, **notes(facts, result.after)}, best=[result.round])
