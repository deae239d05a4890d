"""Why a plan is as it is, in plain words and numbers: what binds it, what the other topologies would have cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from msgspec import structs

from fedsplit.config.run import ClientSection, RunFile
from fedsplit.devices.units import duration, rate, size
from fedsplit.plan.limits import SERVER
from fedsplit.plan.options import Option, describe
from fedsplit.plan.question import Question, server_of, usual_s
from fedsplit.plan.timing import ASSUMED_LINK, reached
from fedsplit.plan.types import ClientPlan, Topology

CAUSES = {
    "device": "speed of the device",
    "up": "uplink",
    "server": "speed of the server",
    "down": "downlink",
    "latency": "latency of the link",
}
"""What binds, by the largest cause of the time."""

FIXED = "fixed in the run file"
"""What binds where the run file leaves nothing to choose."""

MEMORY = {
    "weights": "weights of the layers here",
    "embedding": "embedding",
    "head": "head and final norm",
    "adapters": "adapters, gradients, optimiser",
    "acts_front": "activations of the front",
    "acts_tail": "activations of the tail",
    "recompute": "inside of the layer computed again",
    "logits": "logits and their gradient",
    "wire": "tensors on the wire",
    "holes": "working space and holes in the heap",
    "runtime": "the program itself",
}
TIME = {
    "device": "this device computes",
    "up": "sending",
    "server": "the server computes (its share)",
    "down": "receiving",
    "latency": "messages on their way",
    "overlap": "less: micro-batches at the same time",
}


@dataclass(frozen=True, kw_only=True)
class Rivals:
    """What a chosen candidate is compared with. ``fitting``: how many fit; ``short_of``: what the fastest candidate
    lacks that would have been faster; of the other topologies, ``least``: bytes, and ``fastest``: candidates."""

    fitting: int
    short_of: str
    least: tuple[tuple[Topology, int], ...]
    fastest: tuple[Option, ...]


def binding(rivals: Rivals, best: Option, fixed: ClientSection | None) -> str:
    """What a faster step would need: memory when a faster candidate did not fit, else the largest share of the time."""
    if fixed and fixed.topology and (fixed.cut is not None or fixed.topology in ("local", "w")):
        return FIXED
    return rivals.short_of or CAUSES[best.times.largest()[0]]


def reasons(rivals: Rivals, best: Option, why_not: Sequence[str], question: Question) -> tuple[str, ...]:
    """One line a fact; the first names the choice."""
    budget = question.device.budget_bytes
    found = [
        f"{best.name}: {duration(best.times.total)} a step, "
        + (f"the fastest of {rivals.fitting} plans that fit" if rivals.fitting > 1 else "the only plan that fits"),
        f"{best.name}: {size(best.memory.total)} of {size(budget)}{_others(rivals)}",
        f"of the memory, {_shares(best)}",
        f"of the time, {_times(best)}",
        *_limits(best, question.run),
        *_compared(rivals),
        *why_not,
    ]
    if best.work.micro_batches > question.run.train.micro_batches:
        pieces = f"{best.work.micro_batches} micro-batches of {best.work.rows} rows"
        gain = f"two at once save {duration(best.times.overlap)}" if best.times.overlap > 0 else "fewer would not fit"
        found.append(f"{pieces}: {gain}")
    if best.work.checkpoint:
        found.append("each layer is computed twice, which changes no result: keeping what is inside would not fit")
    if best.topology is not Topology.LOCAL and question.device.link is None:
        found.append(
            f"the link was not measured: {8 * ASSUMED_LINK.up_bps / 1e6:.0f} Mbit/s and "
            f"{duration(ASSUMED_LINK.latency_s)} were assumed"
        )
    if best.topology is not Topology.LOCAL and (share := _narrow(question)):
        found.append(share)
    found += cautions(question, best)
    if best.work.dtype not in question.device.flops:
        found.append(f"{best.work.dtype} was not measured on this device: its float32 speed was taken")
    return tuple(found)


def cautions(question: Question, best: Option) -> list[str]:
    """What the slowest tenth of computing adds to the step, in figures; empty: nothing."""
    if question.usual is None:
        return []
    (device, server), found = question.usual, []
    parts = [("this device", best.times.device, device), ("the server", best.times.server, server)]
    for who, seconds, profile in parts:
        slower = profile.caution if profile else 1.0
        if slower != 1 and seconds:
            found.append(f"{who} computes {duration(seconds)} = {slower:.3g} × {duration(seconds / slower)}")
    if not found:
        return []
    usual = duration(usual_s(question, best))
    return [f"its slowest tenth counts (plan.robust): {'; '.join(found)}; usually a step takes {usual}"]


def _narrow(question: Question) -> str:
    """What this client gets of the server's link, where that is less than its own gives; else empty."""
    got = reached(question.device, server_of(question), question.link_share)
    if got == (question.device.link or ASSUMED_LINK):
        return ""
    return f"its share of the server's link: {rate(got.up_bps)} up, {rate(got.down_bps)} down"


def for_the_fleet(plan: ClientPlan) -> ClientPlan:
    """A plan that is not this client's fastest, said."""
    assert plan.estimate is not None
    name, seconds = describe(plan.topology, plan.cut), duration(plan.estimate.step_s)
    first = f"{name}: {seconds} a step, not the fastest, so that all clients together fit the server's memory"
    return structs.replace(plan, binding=SERVER, reasons=(first, *plan.reasons[1:]))


def _others(rivals: Rivals) -> str:
    """What the other topologies need at least, for the reader who wonders why not."""
    return "".join(f"; {topology} needs {size(count)}" for topology, count in sorted(rivals.least))


def _shares(best: Option) -> str:
    memory = best.memory
    parts = {
        "weights": memory.weights + memory.embedding + memory.head,
        "adapters and optimiser": memory.adapters,
        "activations": memory.acts_front + memory.acts_tail + memory.recompute,
        "logits": memory.logits,
        "wire buffers": memory.wire,
        "working space": memory.holes,
        "the program itself": memory.runtime,
    }
    return ", ".join(f"{name} {size(count)}" for name, count in parts.items() if count >= 50_000)


def _times(best: Option) -> str:
    times = best.times
    parts = {
        "device": times.device,
        "up": times.up,
        "server": times.server,
        "down": times.down,
        "waiting": times.latency,
        "less, two at once": times.overlap,
    }
    return ", ".join(f"{name} {duration(seconds)}" for name, seconds in parts.items() if seconds > 0)


def _compared(rivals: Rivals) -> list[str]:
    """The fastest candidate of each other topology, and whether it fits."""
    found = []
    for option in rivals.fastest:
        but = "" if option.fits else f", but {lack(option)}"
        found.append(f"{option.name} would take {duration(option.times.total)} a step{but}")
    return found


def lack(option: Option) -> str:
    """Why a candidate does not fit."""
    if option.short_bytes:
        return f"lacks {size(option.short_bytes)} of {option.short_of}"
    return f"its round takes {duration(option.round_s)}, {duration(option.late_s)} too long"


def _limits(best: Option, run: RunFile) -> list[str]:
    """What the policy limits, and how much of it this plan takes."""
    found = []
    if best.round_s:
        of = f"{duration(run.policy.round_s)} of policy.round_s"
        found.append(f"a round of {run.train.steps} steps and its transfer: {duration(best.round_s)} of the {of}")
    if run.policy.max_server_bytes and best.topology is not Topology.LOCAL:
        of = f"{size(run.policy.max_server_bytes)} of policy.max_server_bytes"
        found.append(f"on the server, for this client alone: {size(best.server.total)} of the {of}")
    return found
