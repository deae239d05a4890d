"""The operator's own validation rows (``[server_data]``): the whole model measured on the server."""

from __future__ import annotations

import msgspec

from fedsplit.config.run import RunFile
from fedsplit.exchange.evaluate import evaluate, nowhere
from fedsplit.method.record import GlobalState
from fedsplit.plan.types import ClientPlan, Cut, Topology
from fedsplit.split.base import Base
from fedsplit.train.feed import open_feed
from fedsplit.train.part import ClientPart
from fedsplit_server.keeper import Validate


def validation(run: RunFile, base: Base, device: str) -> Validate:
    """A function from a global state to its metrics on ``server_data.path``. Weights are shared with the body.

    :raises DataError: the operator's file is wrong.
    """
    feed = open_feed(run.server_data.path, run, base, "@server", fraction=1.0)
    whole = Cut(base.num_layers, base.num_layers)
    plan = ClientPlan(client="@server", topology=Topology.LOCAL, cut=whole, layers=(), batch=run.evaluate.batch)
    part = ClientPart(base, plan, msgspec.structs.replace(run), device)

    def validate(state: GlobalState) -> dict[str, float]:
        part.load(state.adapter, state.head, patch=state.patch)
        return evaluate(part, feed.test(), len(run.model.labels), nowhere)[0]

    return validate
