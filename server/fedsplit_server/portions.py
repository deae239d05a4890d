"""What of the global factors goes to one client: the layers it is asked for, at the ranks of its plan.

The ranks part of the method decides (``uniform`` and ``per_device`` take the plan's), and cuts or grows. What was cut
is kept by module and rank until the state changes: most clients share their ranks, and an SVD a client would add up.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

import msgspec

from fedsplit.lora.adapter import ModuleKey, Sides
from fedsplit.lora.lowrank import LowRank
from fedsplit.method import stock
from fedsplit.method.chosen import staying
from fedsplit.method.curriculum import share
from fedsplit.method.languages import family_of
from fedsplit.method.parts import Ask, Mask, in_one_word
from fedsplit.method.record import SERVER, GlobalState, Method, Phases
from fedsplit.plan.travel import EVERYTHING, Entries, Travels, mean
from fedsplit.plan.types import ClientPlan, LayerPlan
from fedsplit.train.round import Cuts, for_client, with_own
from fedsplit.wire.probing import Neurons, Sensing


@dataclass
class _Seen:
    """One state as groups see it, what was cut of it by group, and what clients have for themselves."""

    state: GlobalState
    views: dict[str, GlobalState] = field(default_factory=dict)
    cuts: dict[str, Cuts] = field(default_factory=dict)
    own: dict[str, dict[ModuleKey, LowRank]] = field(default_factory=dict)


class Portions:
    """``rank``: the run file's, for modules outside the layers and for a copy that all clients share (``shared``).
    ``rounds``: the run's. ``tag_of``: what a client says its data is. ``travels``: what the method sends, as plans
    were priced."""

    def __init__(
        self,
        method: Method | Phases,
        *,
        rank: int,
        seed: int,
        num_layers: int,
        shared: bool = False,
        rounds: int = 1,
        tag_of: Callable[[str], str] = lambda client: "",
        travels: Travels = EVERYTHING,
    ) -> None:
        self._method, self._rank, self._seed, self._num_layers = method, rank, seed, num_layers
        self._shared, self._rounds, self._tag_of, self._travels = shared, rounds, tag_of, travels
        self._last: _Seen | None = None

    def of(self, plan: ClientPlan, state: GlobalState, layers: Collection[int]) -> dict[ModuleKey, LowRank]:
        """The factors of ``layers`` (-1: those outside the layers) as the client of ``plan`` works with them. What the
        server holds for all alike has the rank of that copy, what the server keeps for this client alone is its own."""
        alike = {layer.layer for layer in plan.layers if layer.place == "server"} if self._shared else set()
        ranks = {layer.layer: layer.rank for layer in plan.layers if layer.rank}
        seen, group, view = self._seen(state), self.group(plan.client), self.view(plan.client, state)
        groups: dict[tuple[str, int], set[int]] = {}
        for layer in layers:
            whose = (SERVER, self._rank) if layer in alike else (plan.client, ranks.get(layer, self._rank))
            groups.setdefault(whose, set()).add(layer)
        found: dict[ModuleKey, LowRank] = {}
        for (client, rank), some in groups.items():
            ask = self._ask(client, rank, state.round)
            found |= for_client(view, self._method, layers=some, ask=ask, cuts=seen.cuts.setdefault(group, {}))
        if self._method.at(state.round).factors.of(state.round).own:
            found = self._with_own(plan.client, found, seen, view)
        return dict(sorted(found.items()))

    def common(self, state: GlobalState) -> dict[ModuleKey, LowRank]:
        """What a copy of all clients starts from: every module, at the run file's rank."""
        ask = self._ask(SERVER, self._rank, state.round)
        return for_client(state, self._method, ask=ask, cuts=self._seen(state).cuts.setdefault("", {}))

    def group(self, client: str) -> str:
        """The group whose adapter this client trains; empty: the one for everybody."""
        groups = self._method.at(0).groups
        return "" if groups.name == stock.one.name else groups.of(self._ask(client, self._rank, 0))[0]

    def view(self, client: str, state: GlobalState) -> GlobalState:
        """The state as this client's group sees it."""
        seen, group = self._seen(state), self.group(client)
        if group not in seen.views:
            seen.views[group] = state.of(group)
        return seen.views[group]

    def comes_down(self, state: GlobalState) -> Sides:
        """The factors that clients do not have for themselves."""
        return in_one_word(self._method.at(state.round).factors.of(state.round).common)

    def goes_up(self, state: GlobalState) -> Sides:
        """The factors that come back."""
        return in_one_word(self._method.at(state.round).factors.of(state.round).shares)

    def trains(self, state: GlobalState) -> Sides:
        """The factors that learn in the round that ``state`` counts."""
        return self._method.at(state.round).factors.of(state.round).learning

    def easiest(self, state: GlobalState) -> float:
        """What share of its rows a client trains on in that round, the easiest first; 0: all, in any order."""
        return share(self._method.at(state.round).local, state.round, self._rounds)

    def staying(self, plan: ClientPlan, state: GlobalState) -> frozenset[int]:
        """The layers whose factors do not travel (-1: those outside the layers): this client has its own."""
        if self._method.at(state.round).layers.device:
            return frozenset({-1, *(layer.layer for layer in plan.layers if layer.place == "client")})
        return staying(self._method, state)

    def sensing(self, state: GlobalState) -> Sensing:
        """What clients measure for the choice of layers."""
        options = self._method.at(state.round).probe.options
        return Sensing(radius=float(options["radius"]), rows=int(options["rows"]))

    def neurons(self, state: GlobalState) -> Neurons | None:
        """Which neurons of layers that stay learn; None: all."""
        mask = self.mask(state)
        if mask.name != stock.neurons.__name__ or float(mask.options["share"]) >= 1:
            return None
        share, momentum = float(mask.options["share"]), float(mask.options["momentum"])
        return Neurons(share=share, momentum=momentum, rows=int(mask.options["rows"]))

    def mask(self, state: GlobalState, plan: ClientPlan | None = None) -> Mask:
        """What part of the factors travels in that round, for the client of ``plan``: it may have time for more."""
        mask = self._method.at(state.round).mask
        if plan is None or not (plan.density_down or plan.density_up):
            return mask
        return replace(mask, down=max(mask.down, plan.density_down), up=max(mask.up, plan.density_up))

    def ranked(self, plan: ClientPlan, state: GlobalState) -> ClientPlan:
        """The plan with the ranks that the method gives this client, which may have a table of its own, and the bytes
        of factors of these ranks."""
        given: dict[int, int] = {}
        parts = self.of(plan, state, {layer.layer for layer in plan.layers})
        for key, part in parts.items():
            given[key.layer] = max(part.rank, given.get(key.layer, 0))
        layers = tuple(
            msgspec.structs.replace(layer, rank=given.get(layer.layer, layer.rank)) if layer.trains else layer
            for layer in plan.layers
        )
        if layers == plan.layers or plan.estimate is None:
            return msgspec.structs.replace(plan, layers=layers)
        before, after = (mean(self._travels, _entries(parts, some)) for some in (plan.layers, layers))
        return msgspec.structs.replace(plan, layers=layers, estimate=plan.estimate.with_factors(before, after))

    def _ask(self, client: str, rank: int, round: int) -> Ask:
        tag = self._tag_of(client)
        tags = {"tag": tag, "family": family_of(tag)} if tag else {}
        return Ask(round=round, client=client, seed=self._seed, layers=self._num_layers, rank=rank, tags=tags)

    def _with_own(
        self, client: str, adapter: dict[ModuleKey, LowRank], seen: _Seen, view: GlobalState
    ) -> dict[ModuleKey, LowRank]:
        """The same objects as long as the state is the same: who answers with them keeps their tensors."""
        known = seen.own.setdefault(client, {})
        missing = {key: part for key, part in adapter.items() if key not in known or known[key].rank != part.rank}
        known |= with_own(view, client, missing)
        return {key: known[key] for key in adapter}

    def _seen(self, state: GlobalState) -> _Seen:
        if self._last is None or self._last.state is not state:
            self._last = _Seen(state)
        return self._last


def _entries(parts: Mapping[ModuleKey, LowRank], layers: Iterable[LayerPlan]) -> Entries:
    """Of the factors on the device, at the ranks of ``layers``."""
    mine = {layer.layer: layer for layer in layers if layer.place == "client"}
    held = [(mine[key.layer], part.shape) for key, part in parts.items() if key.layer in mine]
    both = [(layer.trains, layer.rank * n, layer.rank * m) for layer, (m, n) in held]
    a_held, b_held = sum(a for _, a, _ in both), sum(b for _, _, b in both)
    return Entries(
        held=(a_held, b_held),
        trained=(sum(a for trains, a, _ in both if trains), sum(b for trains, _, b in both if trains)),
        layers=max(1, len(mine)),
    )
