"""The base model on the device: what is here already if it is the same, else the parts that the plan needs, fetched."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedsplit import assets as shipped
from fedsplit.errors import ConfigError, DataError, FedsplitError
from fedsplit.events import Emit
from fedsplit.plan.types import ClientPlan
from fedsplit.split.base import Base, open_base
from fedsplit.split.spans import client_spans
from fedsplit.state.personal import model_name
from fedsplit_client.dealer import Dealer
from fedsplit_client.download import fetch_all, missing_bytes
from fedsplit_client.session import Offer


def base_here(offer: Offer, model: str) -> Base | None:
    """The model that the owner names (``model``), or one that ships with fedsplit; None: it has to be fetched.

    :raises ConfigError: the named one is not the run's.
    """
    if not model:
        return _shipped(offer)
    base = open_base(str(shipped.path(model)) if model in shipped.NAMES else model)
    if base.identity != offer.base:
        raise ConfigError(
            f"{model} is not the base model of this run (identity {base.identity[:12]}…, the server's is "
            f"{offer.base[:12]}…); leave --model out to fetch the right parts"
        )
    return base


def fetched(bulk: Dealer, offer: Offer, folder: Path, name: str, emit: Emit) -> Base:
    """The parts that the plan needs, beside the run's ``folder``. Raises as ``fetch_all``, and DataError."""
    place = _place(offer, folder)
    fetch_all(bulk, offer.assets, place, client=name, run=offer.run.run.name, emit=emit)
    base = open_base(str(place))
    if base.identity != offer.base:
        raise DataError("what was fetched is not the server's base model; delete the folder and join again", str(place))
    return base


def left_by(earlier: Sequence[ClientPlan], offer: Offer, folder: Path) -> Base | None:
    """What was fetched for ``earlier`` plans of this process, when it holds all that the offer needs; else None."""
    base = open_base(str(_place(offer, folder)))
    there = set[object]().union(*(_parts(plan, base.num_layers) for plan in earlier))
    return base if _parts(offer.plan, base.num_layers) <= there else None


def _parts(plan: ClientPlan, num_layers: int) -> set[object]:
    spans = client_spans(plan, num_layers)
    ends = {name for span in spans for name, has in (("embedding", span.embeds), ("head", span.heads)) if has}
    return ends | {layer for span in spans for layer in span.layers}


def to_fetch(offer: Offer, folder: Path) -> int:
    """Bytes that ``fetched`` has to move."""
    return missing_bytes(offer.assets, _place(offer, folder))


def _place(offer: Offer, folder: Path) -> Path:
    return folder.parent.parent / "models" / model_name(offer.base)


def _shipped(offer: Offer) -> Base | None:
    if offer.run.model.path not in shipped.NAMES:
        return None
    try:
        base = open_base(str(shipped.path(offer.run.model.path)))
    except FedsplitError:
        return None
    return base if base.identity == offer.base else None
