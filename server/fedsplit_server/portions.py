"""What of the global factors goes to one client: the layers it is asked for, at the ranks of its plan.

The ranks part of the method decides (``uniform`` and ``per_device`` take the plan's), and cuts or grows. What was cut
is kept by module and rank until the state changes: most clients share their ranks, and an SVD a client would add up.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import msgspec

from fedsplit.lora.adapter import ModuleKey, Sides
from fedsplit.lora.lowrank import LowRank
from fedsplit.lora.sparse import kept, nbytes
from fedsplit.method.curriculum import share
from fedsplit.method.parts import Ask, Mask
from fedsplit.method.record import SERVER, GlobalState, Method, Phases
from fedsplit.plan.types import ClientPlan
from fedsplit.train.round import Cuts, for_client


class Portions:
    """``rank``: the run file's, for modules outside the layers and for a copy that all clients share (``shared``).
    ``rounds``: the run's."""

    def __init__(
        self, method: Method | Phases, *, rank: int, seed: int, num_layers: int, shared: bool = False, rounds: int = 1
    ) -> None:
        self._method, self._rank, self._seed, self._num_layers = method, rank, seed, num_layers
        self._shared, self._rounds = shared, rounds
        self._state: GlobalState | None = None
        self._cuts: Cuts = {}

    def of(self, plan: ClientPlan, state: GlobalState, layers: Collection[int]) -> dict[ModuleKey, LowRank]:
        """The factors of ``layers`` (-1: those outside the layers) as the client of ``plan`` works with them. What the
        server holds for all alike has the rank of that copy."""
        alike = {layer.layer for layer in plan.layers if layer.place == "server"} if self._shared else set()
        ranks = {layer.layer: layer.rank for layer in plan.layers if layer.rank}
        groups: dict[tuple[str, int], set[int]] = {}
        for layer in layers:
            whose = (SERVER, self._rank) if layer in alike else (plan.client, ranks.get(layer, self._rank))
            groups.setdefault(whose, set()).add(layer)
        found: dict[ModuleKey, LowRank] = {}
        for (client, rank), some in groups.items():
            ask = self._ask(client, rank, state.round)
            found |= for_client(state, self._method, layers=some, ask=ask, cuts=self._known(state))
        return dict(sorted(found.items()))

    def common(self, state: GlobalState) -> dict[ModuleKey, LowRank]:
        """What a copy of all clients starts from: every module, at the run file's rank."""
        ask = self._ask(SERVER, self._rank, state.round)
        return for_client(state, self._method, ask=ask, cuts=self._known(state))

    def trains(self, state: GlobalState) -> Sides:
        """The factors that learn in the round that ``state`` counts."""
        return self._method.at(state.round).factors.of(state.round).learning

    def easiest(self, state: GlobalState) -> float:
        """What share of its rows a client trains on in that round, the easiest first; 0: all, in any order."""
        return share(self._method.at(state.round).local, state.round, self._rounds)

    def mask(self, state: GlobalState) -> Mask:
        """What part of the factors travels in that round."""
        return self._method.at(state.round).mask

    def ranked(self, plan: ClientPlan, state: GlobalState) -> ClientPlan:
        """The plan with the ranks that the method gives this client, which may have a table of its own."""
        given: dict[int, int] = {}
        for key, part in self.of(plan, state, {layer.layer for layer in plan.layers}).items():
            given[key.layer] = max(part.rank, given.get(key.layer, 0))
        layers = tuple(
            msgspec.structs.replace(layer, rank=given.get(layer.layer, layer.rank)) if layer.trains else layer
            for layer in plan.layers
        )
        return self._priced(msgspec.structs.replace(plan, layers=layers), state)

    def _priced(self, plan: ClientPlan, state: GlobalState) -> ClientPlan:
        """The plan with the bytes that the method's mask leaves of its factors."""
        cost, mask = plan.estimate, self.mask(state)
        if cost is None or (mask.down >= 1 and mask.up >= 1):
            return plan
        held = self.of(plan, state, {-1, *(layer.layer for layer in plan.layers if layer.place == "client")})
        resting = {layer.layer for layer in plan.layers if not layer.trains}
        down = _saved(held.values(), mask.down)
        up = _saved((part for key, part in held.items() if key.layer not in resting), mask.up)
        thinner = msgspec.structs.replace(
            cost, start_bytes=cost.factors_down_bytes - down, factors_up_bytes=cost.factors_up_bytes - up
        )
        return msgspec.structs.replace(plan, estimate=thinner)

    def _ask(self, client: str, rank: int, round: int) -> Ask:
        return Ask(round=round, client=client, seed=self._seed, layers=self._num_layers, rank=rank)

    def _known(self, state: GlobalState) -> Cuts:
        if self._state is not state:
            self._state, self._cuts = state, {}
        return self._cuts


def _saved(parts: Iterable[LowRank], share: float) -> int:
    """Bytes that a mask leaves out."""
    count = sum(part.A_RN.size + part.B_MR.size for part in parts)
    return 4 * count - nbytes(count, kept(count, share)) if share < 1 and count else 0
