"""Which codec each client's hidden states travel in, of those that the run file allows.

Fewer bits are rounded more, so they have to pay: of the codecs from the most bits to the fewest, a client gets the
first with which its fastest step takes at most ``WORTH`` longer than with the best of them, at an equal share of the
server. Once chosen it stays: another codec would be another result.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from fedsplit.config.policy import wire_bits
from fedsplit.config.run import RunFile
from fedsplit.devices.units import duration, size
from fedsplit.plan.options import Option
from fedsplit.plan.prices import Shelf
from fedsplit.plan.question import Question, alike, hidden_codec, priced
from fedsplit.plan.timing import traffic
from fedsplit.plan.types import Topology

WORTH = 0.10
"""A step that gets faster by less is not worth fewer bits."""


def allowed_codecs(run: RunFile) -> list[str]:
    """Of a run's hidden states, the most bits first."""
    return sorted(map(hidden_codec, run.wire.codecs), key=lambda codec: -wire_bits(run, codec))


def with_codecs(asked: Mapping[str, Question]) -> Mapping[str, Question]:
    """The questions, each with the codec that suits its device; as they are where the run allows only one."""
    first = next(iter(asked.values()), None)
    codecs = allowed_codecs(first.run) if first is not None else []
    if len(codecs) < 2:
        return asked
    kinds: dict[bytes, list[str]] = {}
    for name, question in asked.items():
        kinds.setdefault(alike(question)[0], []).append(name)
    found: dict[str, Question] = {}
    for names in kinds.values():
        questions = [asked[name] for name in names]
        fastest = {codec: _fastest(questions, codec) for codec in codecs}
        for place, name in enumerate(names):
            found[name] = replace(asked[name], wire=_worth({codec: fastest[codec][place] for codec in codecs}))
    return {name: found[name] for name in asked}


def _worth(seconds: Mapping[str, float]) -> str:
    """Where nothing fits with any codec: the fewest bits, which ask for the least."""
    least = min(seconds.values())
    if math.isinf(least):
        return list(seconds)[-1]
    return next(codec for codec, found in seconds.items() if found <= (1 + WORTH) * least)


def _fastest(questions: Sequence[Question], codec: str) -> list[float]:
    """Seconds of each client's fastest step with this codec; infinite where nothing fits."""
    some = [replace(question, wire=codec) for question in questions]
    shelf = Shelf(question=some[0])
    if not shelf.grid.chosen:
        return [math.inf] * len(some)
    found: list[float] = []
    for asked, block in shelf.blocks(some):
        for row in range(len(asked)):
            best = shelf.best(block, row)
            found.append(float(block.seconds.total_KO[row, best]) if best >= 0 else math.inf)
    return found


def said(question: Question, best: Option) -> list[str]:
    """One line of a plan's reasons: what its codec saves; empty where everything travels raw."""
    work = best.work
    if best.topology is Topology.LOCAL or work.wire == "raw":
        return []
    raw = replace(work, wire="raw", wire_grad="raw")
    now, then = (sum(traffic(one, best.topology, best.cut)) for one in (work, raw))
    names = work.wire if work.wire == work.wire_grad else f"{work.wire}, gradients in {work.wire_grad}"
    found = f"hidden states travel in {names}: {size(now)} a step instead of {size(then)}"
    seconds = priced(question, best.topology, best.cut, [raw]).times.total
    return [f"{found}; raw it would take {duration(seconds)}"]
