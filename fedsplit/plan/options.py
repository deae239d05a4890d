"""Every way a client could take part: topologies × cuts × micro-batches, each with what it costs."""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from fedsplit.config.run import ClientSection, PolicySection
from fedsplit.devices.profile import DeviceProfile, Link
from fedsplit.plan.limits import DEADLINE, Limits
from fedsplit.plan.memory import Memory, client_memory, server_memory
from fedsplit.plan.timing import Times, reached, step_times
from fedsplit.plan.types import Cut, Topology
from fedsplit.plan.work import Work

ORDER = {Topology.LOCAL: 0, Topology.U: 1, Topology.V: 2, Topology.W: 3}
"""Between equally fast plans the one that shows the operator less comes first."""

SHIFT = 39
"""Bits of a time's mantissa that do not count: 13 remain, steps of 1 in 8,192 to 16,384."""
HALF_STEP = 1 << (SHIFT - 1)


def time_rank(seconds: float) -> int:
    """Positive seconds, rounded, as a whole number that orders alike: the upper bits of the float itself."""
    return int((int.from_bytes(struct.pack(">d", seconds), "big") + HALF_STEP) >> SHIFT)


def ranked(choice: tuple[Topology, Cut]) -> tuple[int, int, int]:
    """The order of equally fast candidates."""
    topology, cut = choice
    return ORDER[topology], -cut.c1, cut.c2


@dataclass(frozen=True, kw_only=True)
class Option:
    """One candidate. ``short_of``: what it lacks, empty where it fits: ``short_bytes`` of memory on the device or on
    the server, or ``late_s`` in a round, which is planned to take ``round_s`` (0 where it has no limit)."""

    topology: Topology
    cut: Cut
    work: Work
    memory: Memory
    server: Memory
    times: Times
    short_bytes: int
    short_of: str = ""
    round_s: float = 0.0
    late_s: float = 0.0

    @property
    def fits(self) -> bool:
        return not self.short_of

    @property
    def key(self) -> tuple[int, int, int, int, int]:
        """Fastest first. About four digits of the time count: less is noise of the model, and the deeper front wins."""
        return time_rank(self.times.total), *ranked((self.topology, self.cut)), self.work.micro_batches

    @property
    def name(self) -> str:
        return describe(self.topology, self.cut)


def describe(topology: Topology, cut: Cut) -> str:
    """``local``, ``u (2, 15)``, ``v (2)``, ``w``."""
    if topology is Topology.U:
        return f"u ({cut.c1}, {cut.c2})"
    return f"v ({cut.c1})" if topology is Topology.V else str(topology)


def cuts(topology: Topology, num_layers: int) -> Iterator[Cut]:
    """All cuts of a topology that leave the server at least one layer; ``local`` has one, everything in front."""
    layers = num_layers
    if topology is Topology.LOCAL:
        yield Cut(layers, layers)
    elif topology is Topology.W:
        yield Cut(0, layers)
    elif topology is Topology.V:
        yield from (Cut(c1, layers) for c1 in range(layers))
    else:
        pairs = ((c1, c2) for c1 in range(layers) for c2 in range(c1 + 1, layers + 1))
        yield from (Cut(c1, c2) for c1, c2 in pairs if (c1, c2) != (0, layers))


def refusal(topology: Topology, cut: Cut, policy: PolicySection, allowed: Collection[Topology] | None) -> str:
    """Why a rule of the run file (or of the method) forbids this cut; empty when it is allowed."""
    if allowed is not None and topology not in allowed:
        return f"{topology} is not among the topologies asked for: {', '.join(sorted(allowed))}"
    if policy.topologies and topology not in policy.topologies:
        return f"policy.topologies leaves only {', '.join(policy.topologies)}"
    if topology is Topology.LOCAL:
        return ""
    if topology is Topology.V and not policy.shares_labels:
        return "v sends the labels to the server: it needs policy.shares_labels = true"
    if cut.c1 == 0 and not policy.exposes_tokens:
        return f"{topology} with an empty front shows the server the input: it needs policy.exposes_tokens = true"
    if topology is not Topology.W and cut.c1 < policy.min_front:
        return f"a front of {cut.c1} layers is below policy.min_front = {policy.min_front}"
    return ""


def candidates(
    num_layers: int, policy: PolicySection, fixed: ClientSection | None, allowed: Collection[Topology] | None
) -> tuple[list[tuple[Topology, Cut]], list[str]]:
    """(what may be planned, why whole topologies may not), by the policy and by what is fixed for this client."""
    wanted = [Topology(fixed.topology)] if fixed and fixed.topology else list(ORDER)
    chosen: list[tuple[Topology, Cut]] = []
    reasons: dict[str, None] = {}
    for topology in wanted:
        cuts_here = list(_wanted_cuts(topology, num_layers, fixed))
        refused = [refusal(topology, cut, policy, allowed) for cut in cuts_here]
        usable = [(topology, cut) for cut, why in zip(cuts_here, refused, strict=True) if not why]
        chosen.extend(usable)
        if not cuts_here and not (fixed and fixed.cut) and (not policy.topologies or topology in policy.topologies):
            reasons[f"{topology} needs a model of at least 2 layers"] = None
        if not usable:
            reasons.update(dict.fromkeys(refused))
    return chosen, list(reasons)


def _wanted_cuts(topology: Topology, num_layers: int, fixed: ClientSection | None) -> Iterator[Cut]:
    if fixed is None or fixed.cut is None:
        yield from cuts(topology, num_layers)
        return
    cut = Cut(*fixed.cut)
    if topology is Topology.LOCAL and cut.c1 == cut.c2:
        yield Cut(num_layers, num_layers)
    elif topology is Topology.U and cut.c1 == cut.c2 <= num_layers and fixed.topology:
        # Nothing between the cuts: of no use, but asked for by name.
        yield cut
    else:
        yield from (known for known in cuts(topology, num_layers) if known == cut)


def price(
    topology: Topology,
    cut: Cut,
    works: Sequence[Work],
    device: DeviceProfile,
    server: DeviceProfile,
    *,
    threads: int = 0,
    share: float = 1.0,
    limits: Limits | None = None,
    link_share: float = 1.0,
    overlap: bool = False,
) -> Option:
    """The candidate with the fastest of ``works`` that fits, fewer micro-batches before more, else with the last one.

    Layers are computed twice only where as many micro-batches do not fit otherwise. ``overlap``: micro-batches count
    as a pipeline, so that more of them than memory asks for can be faster.
    """
    bounds = limits or Limits(server_bytes=server.budget_bytes)

    def made(work: Work) -> Option:
        memory = client_memory(work, topology, cut).with_holes(work, device)
        remote = server_memory(work, topology, cut).with_holes(work, server)
        short, of = _short(memory, remote, topology, device, bounds)
        times = step_times(work, topology, cut, device, server, threads=threads, share=share, link_share=link_share)
        times = times if overlap else replace(times, overlap=0.0)
        return Option(
            topology=topology, cut=cut, work=work, memory=memory, server=remote, times=times, short_bytes=short,
            short_of=of,
        )  # fmt: skip

    found = [made(work) for work in works]
    fitting = [option for option in found if not option.short_bytes] or found[-1:]
    whole = {one.work.micro_batches for one in fitting if not one.work.checkpoint}
    usable = [one for one in fitting if not one.work.checkpoint or one.work.micro_batches not in whole]
    best = min(usable, key=lambda one: (one.times.total, one.work.micro_batches))
    return dated(best, bounds, reached(device, server, link_share))


def dated(option: Option, limits: Limits, link: Link) -> Option:
    """The candidate with the seconds of its round, where these are limited: what takes longer does not fit."""
    if not limits.dated:
        return option
    round_s = limits.planned_s(option.work, option.topology, option.cut, option.times.total, link)
    late_s = max(0.0, round_s - limits.round_s)
    return replace(option, round_s=round_s, late_s=late_s, short_of=option.short_of or (DEADLINE if late_s else ""))


def splits(work: Work, *, checkpoint: bool = False) -> list[Work]:
    """The same step in ever smaller micro-batches, from the run file's number upwards; with ``checkpoint`` all of these
    once more, layers computed twice. The result never changes."""
    counts = [m for m in range(1, work.batch + 1) if work.batch % m == 0 and m >= work.micro_batches]
    once = [replace(work, micro_batches=count) for count in counts or [work.batch]]
    return [*once, *(replace(one, checkpoint=True) for one in once if checkpoint)]


def _short(
    memory: Memory, remote: Memory, topology: Topology, device: DeviceProfile, limits: Limits
) -> tuple[int, str]:
    short = memory.total - device.budget_bytes
    if short > 0:
        return short, "memory of the device"
    if topology is not Topology.LOCAL and remote.total > limits.server_bytes:
        return remote.total - limits.server_bytes, limits.server_rule
    return 0, ""
