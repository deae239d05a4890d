"""What a client has for itself, round by round: head, Bs, or whole layers. It is on the disk before anything goes up.

The newest rounds are kept and the one that validation chose so far, since the end may be about any of them. A round
that is asked for again begins with what was here before it: what came later was never merged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from fedsplit.errors import RemoteProtocolError
from fedsplit.lora.adapter import Adapter, Head, Sides, Tensor, flatten, sides, unflatten
from fedsplit.state.personal import KEEP, ClientRun
from fedsplit.wire.messages import Evaluate, Finish, Start

HEAD, FISHER = "head/", "fisher/"
"""How the names begin of a head, and of what a client knows beside its factors."""
FACTORS = ("/A", "/B")


class Own:
    """``kept``: where it outlives this process. ``head``: every client has a head of its own. ``drawn``: the factors
    that layers of its own begin with."""

    def __init__(self, kept: ClientRun | None, *, head: bool, drawn: Callable[[], Adapter]) -> None:
        self._kept, self._head, self._drawn = kept, head, drawn
        self._rounds: dict[int, dict[str, Tensor]] = {}
        for round in kept.rounds() if kept is not None else ():
            assert kept is not None
            if (one := kept.load(round, exact=True)) is not None:
                own = one.meta.get("own", list(one.arrays))  # the end of a run keeps all, and says what is own
                self._put(round, {name: array for name, array in one.arrays.items() if name in own})

    def __bool__(self) -> bool:
        return bool(self._rounds)

    def until(self, round: int) -> dict[str, Tensor]:
        """As it was after ``round`` rounds, by flat name; empty where nothing was trained until then."""
        past = [known for known in self._rounds if known <= round]
        return self._rounds[max(past)] if past else {}

    def whole(self, message: Start | Evaluate | Finish, arrays: Mapping[str, Tensor]) -> tuple[Adapter, Head]:
        """Factors and head: what came, and what is here as it was in that round. A B that never trained is zero.

        :raises RemoteProtocolError: ``message.rows`` does not fit the factors that came.
        """
        mine = self.until(message.round)
        found = dict(arrays) | {name: array for name, array in mine.items() if name.startswith(HEAD)}
        names = sorted(name for name in arrays if name.endswith("/A") and not name.startswith(HEAD))
        if message.rows and len(message.rows) != len(names):
            raise RemoteProtocolError(f"{len(message.rows)} factors are said to stay here, {len(names)} came")
        for name, m in zip(names, message.rows, strict=False):
            b, shape = f"{name[:-1]}B", (m, arrays[name].shape[0])
            known = mine.get(b)
            found[b] = known if known is not None and known.shape == shape else np.zeros(shape, arrays[name].dtype)
        return unflatten(found | self._layers(message, mine))

    def _layers(self, message: Start | Evaluate | Finish, mine: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Of the layers that stay here: as they were trained, as they are drawn where they were not yet."""
        shapes = {name: (rows, columns) for name, rows, columns in message.stays}
        found = {name: mine[name] for name in shapes if name in mine and mine[name].shape == shapes[name]}
        missing = shapes.keys() - found
        first = flatten(self._drawn()) if missing else {}
        for name in sorted(missing):
            drawn = first.get(name)
            if drawn is None or any(have < want for have, want in zip(drawn.shape, shapes[name], strict=True)):
                said = "none" if drawn is None else f"{drawn.shape} at most"
                raise RemoteProtocolError(f"{name} of {shapes[name]} is said to stay here, this device draws {said}")
            rows, columns = shapes[name]  # at a lower rank the first components
            found[name] = drawn[:rows, :columns]
        return found

    def keep(self, start: Start, adapter: Adapter, head: Head, beside: Mapping[str, Tensor] | None = None) -> Head:
        """Note what was trained in a round as far as it stays here, and what is known ``beside`` it; the head that goes
        up. What is not finite is not kept: there would be no way back from it."""
        trained = flatten(adapter, head)
        stays = {name for name, _, _ in start.stays}
        own = {name: trained[name] for name in trained if name in stays or self._stays(name, start)} | dict(
            beside or {}
        )
        if own and all(bool(np.isfinite(array).all()) for array in own.values()):
            self._rounds[start.round + 1] = self.until(start.round) | own
        wanted = {*sorted(self._rounds)[-KEEP:], max((one for one in self._rounds if one <= start.best), default=0)}
        self._rounds = {round: one for round, one in self._rounds.items() if round in wanted}
        return {} if self._head else head

    def back_to(self, round: int) -> None:
        """Later rounds were never merged. On the disk they would outlive those that count."""
        self._rounds = {known: one for known, one in self._rounds.items() if known <= round}
        if self._kept is not None and any(known > round for known in self._kept.rounds()):
            self._kept.back_to(round)

    def _stays(self, name: str, start: Start) -> bool:
        return self._head if name.startswith(HEAD) else bool(start.rows) and name.endswith("/B")

    def _put(self, round: int, arrays: Mapping[str, Tensor]) -> None:
        mine = {n: a for n, a in arrays.items() if (self._head if n.startswith(HEAD) else n.endswith(FACTORS))}
        mine |= {n: a for n, a in arrays.items() if n.startswith(FISHER)}
        if mine:
            self._rounds[round] = mine


def goes_up(start: Start, adapter: Adapter) -> dict[str, Tensor]:
    """The factors that learnt and are not this client's own, by flat name."""
    up: Sides = "A" if start.rows else start.trains
    stays = {name for name, _, _ in start.stays}
    return {name: array for name, array in sides(adapter, up).items() if name not in stays}
