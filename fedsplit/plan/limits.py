"""What no plan may exceed, whatever it costs otherwise: the server's memory, and the planned seconds of a round.

A round of a client is its optimiser steps and the transfer of its factors, once up and once down.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedsplit.config.run import RunFile
from fedsplit.devices.profile import DeviceProfile, Link
from fedsplit.plan.factors import factor_bytes
from fedsplit.plan.types import Cut, Topology
from fedsplit.plan.work import Work

SERVER = "memory of the server"
SERVER_RULE = "policy.max_server_bytes"
"""What binds on the server: what its machine has, or what the policy grants."""
DEADLINE = "deadline of the round"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """``server_bytes``: of the server's whole process; ``server_rule``: whose limit that is; ``round_s``: of ``steps``
    and the factors' transfer, infinite without a limit; ``own_head``: every client keeps its own head."""

    server_bytes: int
    server_rule: str = SERVER
    round_s: float = math.inf
    steps: int = 1
    own_head: bool = False

    @property
    def dated(self) -> bool:
        """Whether a round has a limit at all."""
        return self.round_s < math.inf

    def planned_s(self, work: Work, topology: Topology, cut: Cut, step_s: float, link: Link) -> float:
        """Planned seconds of a round."""
        up, down = factor_bytes(work, topology, cut, own_head=self.own_head)
        return self.steps * step_s + (up / link.up_bps + down / link.down_bps)


def limits_of(run: RunFile, server: DeviceProfile) -> Limits:
    """The limits of a run whose server is ``server``."""
    have, granted = server.budget_bytes, run.policy.max_server_bytes
    narrower = 0 < granted < have
    return Limits(
        server_bytes=granted if narrower else have,
        server_rule=SERVER_RULE if narrower else SERVER,
        round_s=run.policy.round_s or math.inf,
        steps=run.train.steps,
        own_head=run.model.head == "local",
    )
