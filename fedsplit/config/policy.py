"""Rules of ``[policy]`` and ``[plan]``: permissions and limits that contradict each other, or leave nothing to plan.

What needs the model's layers is checked where a plan is made; what needs the method, where the method is built.
"""

from __future__ import annotations

from collections.abc import Iterator

from fedsplit.config.run import ClientSection, PolicySection, RunFile
from fedsplit.config.shape import found
from fedsplit.errors import Problem
from fedsplit.wire.codecs import BITS

PERMISSION = {"v": ("shares_labels", "see the labels"), "w": ("exposes_tokens", "read the tokens")}
"""What a topology shows the server, and the key that permits it."""

WIRE_BITS = {"float32": 32, "bfloat16": 16}
"""Bits of an activation on the wire where it travels as the model computes it."""


def wire_bits(run: RunFile, codec: str) -> int:
    """Bits of a hidden state on the wire, scales left out."""
    return WIRE_BITS[run.model.dtype] if codec == "raw" else BITS[codec]


def policy(run: RunFile) -> Iterator[Problem]:
    """What the policy's own keys, and the keys they limit, contradict."""
    rules = run.policy
    if rules.min_front == 0 and not rules.exposes_tokens:
        fix = "set policy.exposes_tokens = true if the server may read the tokens, or min_front = 1"
        yield Problem("policy.min_front", "0", "at least 1 without policy.exposes_tokens", fix)
    yield from _topologies(rules)
    bits = WIRE_BITS[run.model.dtype]
    if rules.min_wire_bits > bits:
        fix = 'set model.dtype = "float32", or lower it' if rules.min_wire_bits <= 32 else "lower it"
        words = f'at most {bits} with model.dtype = "{run.model.dtype}"'
        yield Problem("policy.min_wire_bits", str(rules.min_wire_bits), words, fix)
    yield from _codecs(run)
    if rules.round_s > run.rounds.deadline_s > 0:
        fix = "lower it, or raise rounds.deadline_s: later updates do not count"
        words = f"at most rounds.deadline_s = {run.rounds.deadline_s:g}"
        yield Problem("policy.round_s", found(rules.round_s), words, fix)
    yield from _ranks(run)
    yield from _bits(run)
    yield from _slack(run)
    if run.plan.coverage > run.rounds.clients > 0:
        fix = "lower it, or raise rounds.clients"
        words = f"at most rounds.clients = {run.rounds.clients}"
        yield Problem("plan.coverage", str(run.plan.coverage), words, fix)


def _codecs(run: RunFile) -> Iterator[Problem]:
    codecs, lowest = run.wire.codecs, run.policy.min_wire_bits
    if not codecs:
        yield Problem("wire.codecs", "no codec", 'at least one, as in codecs = ["raw"]')
    for i, codec in enumerate(codecs):
        path, bits = f"wire.codecs[{i}]", wire_bits(run, codec)
        if codec in codecs[:i]:
            yield Problem(path, found(codec), "every codec once", "remove the repetition")
        elif codec != "raw" and bits >= WIRE_BITS[run.model.dtype]:
            words = f'fewer bits than the {WIRE_BITS[run.model.dtype]} of model.dtype = "{run.model.dtype}"'
            yield Problem(path, f"{found(codec)} of {bits} bits", words, 'write "raw"')
        elif codec != "raw" and (fewest := min(bits, run.wire.gradient_bits if codec == "int4" else bits)) < lowest:
            words = f"at least policy.min_wire_bits = {lowest}"
            yield Problem(path, f"{found(codec)} of {fewest} bits", words, "remove it or lower policy.min_wire_bits")


def _topologies(rules: PolicySection) -> Iterator[Problem]:
    for i, topology in enumerate(rules.topologies):
        path = f"policy.topologies[{i}]"
        if topology in rules.topologies[:i]:
            yield Problem(path, found(topology), "every topology once", "remove the repetition")
        else:
            yield from permission(rules, topology, path, "remove it")


def permission(rules: PolicySection, topology: str, path: str, otherwise: str) -> Iterator[Problem]:
    """The problem of a topology at ``path`` that shows the server what no key permits."""
    key, shows = PERMISSION.get(topology, ("", ""))
    if key and not getattr(rules, key):
        fix = f"set policy.{key} = true if the server may {shows}, or {otherwise}"
        yield Problem(path, found(topology), f"policy.{key} = true", fix)


def _ranks(run: RunFile) -> Iterator[Problem]:
    lowest, rank, ranks = run.policy.min_rank, run.lora.rank, run.plan.ranks
    if lowest > rank >= 1:
        yield Problem("policy.min_rank", str(lowest), f"at most lora.rank = {rank}", "lower it or raise lora.rank")
    if any(1 <= other < rank for other in ranks) and run.plan.layers == "all":
        fix = "set it: smaller ranks are for devices that not everything fits; or remove them"
        yield Problem("plan.layers", '"all"', '"fit" with plan.ranks below lora.rank', fix)
    for i, other in enumerate(ranks):
        path = f"plan.ranks[{i}]"
        if other < 1:
            yield Problem(path, str(other), "at least 1")
        elif other in ranks[:i]:
            yield Problem(path, str(other), "every rank once", "remove the repetition")
        elif other == rank:
            yield Problem(path, str(other), "another rank than lora.rank", "remove it")
        elif other < lowest:
            yield Problem(path, str(other), f"at least policy.min_rank = {lowest}", "raise it or lower policy.min_rank")


def _bits(run: RunFile) -> Iterator[Problem]:
    bits, own = run.plan.bits, WIRE_BITS[run.model.dtype]
    if bits and run.plan.layers != "fit":
        fix = "set it: fewer bits are for devices that not everything fits; or remove plan.bits"
        yield Problem("plan.layers", found(run.plan.layers), '"fit" with plan.bits', fix)
    if bits and run.plan.coverage:
        fix = "set one of them: plans for the fleet's sake choose layers and ranks only"
        yield Problem("plan.bits", found(list(bits)), "none with plan.coverage", fix)
    for i, width in enumerate(bits):
        if width in bits[:i]:
            yield Problem(f"plan.bits[{i}]", str(width), "every width once", "remove the repetition")
        elif width >= own:
            words = f'fewer than the {own} of model.dtype = "{run.model.dtype}"'
            yield Problem(f"plan.bits[{i}]", str(width), words, "remove it")


def _slack(run: RunFile) -> Iterator[Problem]:
    """Who waits is known once all are there, so that plans have to change then."""
    slack, together = run.plan.slack, run.server.adapters
    if slack == "none":
        return
    if run.server.shared:
        why = "the server waits for every client in every step" if slack == "steps" else "no plan changes during a run"
        fix = f'with a shared copy {why}: set plan.slack = "none", or server.adapters = "per-client"'
        yield Problem("plan.slack", found(slack), f'"none" with server.adapters = "{together}"', fix)
    if not run.plan.replan:
        fix = 'set plan.replan = true: who waits is known only when all clients are there; or plan.slack = "none"'
        yield Problem("plan.slack", found(slack), '"none" with plan.replan = false', fix)
    if slack == "rank" and not any(rank > run.lora.rank for rank in run.plan.ranks):
        fix = 'add ranks above lora.rank to plan.ranks, or set plan.slack = "steps"'
        yield Problem("plan.slack", '"rank"', f"a rank above lora.rank = {run.lora.rank} in plan.ranks", fix)


def client(run: RunFile, section: ClientSection, path: str) -> Iterator[Problem]:
    """What the policy forbids of a client's fixed topology and cut."""
    rules, topology = run.policy, section.topology
    allowed = rules.topologies
    if topology and allowed and topology not in allowed:
        fix = f'add "{topology}" to policy.topologies, or take {_either(allowed)}'
        yield Problem(f"{path}.topology", found(topology), f"one of policy.topologies: {', '.join(allowed)}", fix)
    yield from permission(rules, topology, f"{path}.topology", "take topology u")
    if section.cut is None:
        return
    c1, c2 = section.cut
    shown, where = f"[{c1}, {c2}]", f"{path}.cut"
    if not 0 <= c1 <= c2:
        yield Problem(where, shown, "0 ≤ c1 ≤ c2", "layers [c1, c2) are the body")
    elif topology == "local" and c1 < c2:
        yield Problem(where, shown, "no cut, or c1 = c2, with topology local", "remove it: a local client holds all")
    elif topology == "w" and c1 > 0:
        yield Problem(where, shown, "c1 = 0 with topology w", "take topology u for a cut inside the model")
    elif topology in ("", "u", "v") and c1 < rules.min_front and c1 < c2:
        fix = f"raise c1 to {rules.min_front} or lower policy.min_front"
        yield Problem(where, shown, f"c1 of at least policy.min_front = {rules.min_front}", fix)
    elif not topology and allowed and not set(_possible(c1, c2)) & set(allowed):
        fix = f'add "{_possible(c1, c2)[0]}" to policy.topologies, or remove the cut'
        yield Problem(where, shown, f"a cut of policy.topologies: {', '.join(allowed)}", fix)


def _possible(c1: int, c2: int) -> tuple[str, ...]:
    """Topologies that a cut could have; a ``w`` begins at 0."""
    if c1 == c2:
        return ("local",)
    return ("u", "v") if c1 else ("w", "u", "v")


def _either(names: tuple[str, ...]) -> str:
    return " or ".join(names)
