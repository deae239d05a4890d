"""Fisher information of rows and of neurons, measured on a client's rows and kept there; and how sensitive layers are.

How difficult each row is, is measured once, on the first state that comes. The information of neurons (rows of B in
layers that stay here) is followed from round to round and decides which of them learn. F of a client's first round is
over all its rows; then F <- momentum F + (1 - momentum) F', F' of some rows drawn for the round.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedsplit.config.run import RunFile
from fedsplit.events import Emit, Note
from fedsplit.exchange.difficulty import difficulties
from fedsplit.exchange.feed import Feed
from fedsplit.exchange.part import Part
from fedsplit.exchange.probing import NeuronFisher, Resting, probed, resting, sensitivities
from fedsplit.lora.adapter import Adapter, ModuleKey, Tensor
from fedsplit.lora.lowrank import LowRank
from fedsplit.method.chosen import name_of
from fedsplit.seeds import generator
from fedsplit.wire.messages import Start
from fedsplit.wire.probing import Neurons, Sensing
from fedsplit_client.own import FISHER


class Begun(NamedTuple):
    """``rests``: rows of B that do not learn in this round. ``beside``: what is to be kept beside the factors."""

    rests: Resting
    beside: dict[str, Tensor]


class Fisher:
    """``part``: the one of now. ``between`` is called after every row."""

    def __init__(
        self, name: str, run: RunFile, part: Callable[[], Part], feed: Feed, emit: Emit, between: Callable[[], None]
    ) -> None:
        self._name, self._seed, self._part, self._feed = name, run.run.seed, part, feed
        self._emit, self._between = emit, between
        self.difficulty: NDArray[np.float64] | None = None

    def begin(self, start: Start, before: Mapping[str, Tensor]) -> Begun:
        """As a round begins, the part being loaded: measure what it needs and put to rest what does not learn.
        ``before``: what was kept beside the factors until now."""
        neurons = start.neurons if start.stays else None
        mine = {n.removeprefix(FISHER): a for n, a in before.items() if n.startswith(FISHER)}
        known = {key: mine[str(key)] for key in staying(start) if str(key) in mine}
        fisher = NeuronFisher(probed(self._part())) if neurons is not None else None
        if (start.easiest and self.difficulty is None) or (fisher is not None and not known):
            self._pass(start, fisher)
        elif fisher is not None and neurons is not None:
            self._some(start, fisher, neurons)
        if fisher is None or neurons is None:
            return Begun({}, {})
        found = {key: value for key, value in fisher.mean().items() if key in staying(start)}
        if known:
            found = {key: followed(known[key], value, neurons.momentum) for key, value in found.items()}
        rests = resting(found, neurons.share)
        probed(self._part()).rest(rests)
        return Begun(rests, {f"{FISHER}{key}": value for key, value in found.items()})

    def sensitivity(self, asked: Sensing) -> dict[str, float]:
        """Of every layer, as a report names it, over the first rows of a shuffle."""
        rows = self._feed.singly(self._drawn(asked.rows, "sensitivity"))
        key = (self._seed, self._name)
        found = sensitivities(probed(self._part()), rows, asked.radius, key, self._between)
        return {name_of("sensitivity", layer): value for layer, value in found.items()}

    def _pass(self, start: Start, fisher: NeuronFisher | None) -> None:
        """Over all rows. How difficult they are stays as it was once known."""
        what = "how difficult each row is" if self.difficulty is None else "which neurons matter"
        self._emit(Note(client=self._name, text=f"measuring {what}; the numbers stay here"))
        each = fisher.add if fisher is not None else lambda: None
        key = (self._seed, self._name)
        found = difficulties(self._part(), self._feed.singly(), key, self._between, each)
        if start.easiest and self.difficulty is None:
            self.difficulty = found

    def _some(self, start: Start, fisher: NeuronFisher, neurons: Neurons) -> None:
        rows = self._feed.singly(self._drawn(neurons.rows, start.round))
        difficulties(self._part(), rows, (self._seed, self._name, start.round), self._between, fisher.add)

    def _drawn(self, rows: int, *what: int | str) -> list[int]:
        count = len(self._feed.dataset.train)
        chosen: list[int] = generator(self._seed, self._name, *what, "probed").permutation(count)[:rows].tolist()
        return sorted(chosen)


def staying(start: Start) -> tuple[ModuleKey, ...]:
    """The modules that this client has for itself."""
    names = sorted({name.rpartition("/")[0] for name, _, _ in start.stays})
    return tuple(ModuleKey(int(layer), path) for layer, _, path in (name.partition("/") for name in names))


def followed(before: NDArray[np.float64], now: NDArray[np.float64], momentum: float) -> NDArray[np.float64]:
    """F of a neuron from one round to the next. What was measured of another number of neurons is void."""
    return now if before.shape != now.shape else momentum * before + (1 - momentum) * now


def unmoved(adapter: Adapter, given: Adapter, rows: Resting) -> dict[ModuleKey, LowRank]:
    """``adapter`` with the bits that were ``given`` in rows of B that rested: on its way through a part, alpha/r may
    have rounded them."""
    found = dict(adapter)
    for key in found.keys() & rows.keys():
        b_MR = np.where(rows[key][:, None], given[key].B_MR, found[key].B_MR)
        found[key] = LowRank(b_MR, found[key].A_RN)
    return found
