"""After a run: this device's kept profile learns how long its steps really took and how much memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedsplit.devices.load import load, save
from fedsplit.errors import FedsplitError
from fedsplit.events import Emit, Note
from fedsplit.plan.card import card
from fedsplit.plan.correction import learnt
from fedsplit.plan.rooms import compact
from fedsplit.wire.messages import DataSummary
from fedsplit_client.cost import Taken, cost_of
from fedsplit_client.session import Offer

FEWEST = 3
"""Steps below which a median says nothing: the first one warms up."""


def learn(
    path: Path,
    offer: Offer,
    config: Mapping[str, Any],
    data: DataSummary,
    steps: Sequence[Taken],
    emit: Emit,
    *,
    edge: bool = False,
) -> None:
    """Correct the profile in ``path``; ``config``: the model's config.json; ``edge``: what computed was not torch.

    A profile that was measured with the other of the two learns nothing: its program and its speed are others.
    A run has ended well: what goes wrong here is a warning, not an error.
    """
    cost = cost_of(steps)
    if cost is None or len(steps) < FEWEST or not path.is_file():
        return
    run = offer.run
    try:
        kept = load(path)
        if kept.edge != edge:
            return
        model = card(config, run.model.task, len(run.model.labels))
        model, plan = compact(model, offer.plan)
        new = learnt(kept, model, run, plan, data, device_s=cost.device_s, peak_bytes=cost.peak_bytes)
        save(new, path)
    except FedsplitError as error:
        emit(Note(client=offer.plan.client, text=f"the profile did not learn from this run: {error}", warning=True))
        return
    emit(
        Note(
            client=offer.plan.client,
            text=f"learnt for the next plan: computing takes {new.time_factor:g} × as long as was measured once, "
            f"the program {new.memory_factor:g} × its memory (kept in {path})",
        )
    )
