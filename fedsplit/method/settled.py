"""What a method decides that a run file leaves open: the topologies, the server's copies, how layers are given out.

The run that is planned and served is the settled one. What a file says by itself is never overruled: where method and
file contradict each other, both are named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from msgspec import structs

from fedsplit.config.policy import PERMISSION, policy
from fedsplit.config.run import RunFile
from fedsplit.config.shape import found
from fedsplit.errors import ConfigError, Problem
from fedsplit.method.parts import Placement
from fedsplit.method.record import Method, Phases, every
from fedsplit.plan.types import Topology


def settled(run: RunFile, method: Method | Phases) -> RunFile:
    """``run`` with ``policy.topologies``, ``server.adapters`` and ``plan.layers`` as the method and the file together
    have them. Settling twice changes nothing.

    Raises ConfigError with all that the file says and the method does not allow.
    """
    places = [one.topology for one in every(method)]
    problems = [*_adapters(run, method, places), *_layers(run, method), *_topologies(run, method, places)]
    if problems:
        raise ConfigError(problems)
    asked = next((place.server for place in places if place.server), "")
    rooms = any(one.layers.rooms for one in every(method))
    changed = structs.replace(
        run,
        server=structs.replace(run.server, adapters=run.server.adapters or asked),
        policy=structs.replace(run.policy, topologies=_left(run, places)),
        plan=structs.replace(run.plan, layers="rooms" if rooms else run.plan.layers),
    )
    if problems := list(policy(changed)):
        raise ConfigError(problems)
    return changed


def _left(run: RunFile, places: Sequence[Placement]) -> tuple[str, ...]:
    """The topologies that both allow, and no key forbids; empty where nobody says anything."""
    allowed = _allowed(places)
    if allowed == frozenset(Topology):
        return run.policy.topologies
    mine = run.policy.topologies or [str(one) for one in Topology if _permitted(run, one)]
    return tuple(one for one in mine if Topology(one) in allowed)


def _allowed(places: Sequence[Placement]) -> frozenset[Topology]:
    return frozenset(Topology).intersection(*(place.allowed for place in places))


def _permitted(run: RunFile, topology: Topology) -> bool:
    key, _ = PERMISSION.get(topology, ("", ""))
    return not key or bool(getattr(run.policy, key))


def _permitting(allowed: frozenset[Topology]) -> list[str]:
    """The keys that permit the method's topologies: where none is permitted, each of them waits for one."""
    keys = (PERMISSION[one] for one in Topology if one in allowed and one in PERMISSION)
    return [f"set policy.{key} = true if the server may {shows}" for key, shows in keys]


def _topologies(run: RunFile, method: Method | Phases, places: Sequence[Placement]) -> Iterator[Problem]:
    allowed = _allowed(places)
    words = f"{', '.join(one for one in Topology if one in allowed)} with method {method.name!r}"
    instead = "take another method (fedsplit methods)"
    if rule := next((one.layers.name for one in every(method) if one.layers.rooms), ""):
        words += f", whose layers = {rule} leaves out layers that a body at the server would have to leave out, too"
        instead = 'take method fedavg, with plan.layers = "fit" for small devices'
    if not _left(run, places) and allowed != frozenset(Topology):
        ways = ["take them out"] if run.policy.topologies else _permitting(allowed)
        said = ", ".join(run.policy.topologies) or "none permitted"
        yield Problem("policy.topologies", said, words, ", or ".join([*ways, instead]))
    for i, section in enumerate(run.clients):
        if section.topology and Topology(section.topology) not in allowed:
            fix = f"remove it, or {instead}"
            yield Problem(f"clients[{i}].topology", found(section.topology), f"one of {words}", fix)


def _adapters(run: RunFile, method: Method | Phases, places: Sequence[Placement]) -> Iterator[Problem]:
    asked = sorted({place.server for place in places if place.server})
    said = run.server.adapters
    if len(asked) > 1:
        before = next(place.server for place in places if place.server)
        path, which, one = _first(run, method, lambda one: one.topology.server not in ("", before))
        fix = f'set but = {{ topology = {{ name = "split", server = "{before}" }} }} there, or remove the phase'
        words = f"{before} as before it: the server holds the body's factors in one way for the whole run"
        yield Problem(path, f"{which} with {one.topology.server}", words, fix)
    elif asked and said not in ("", asked[0]):
        fix = "remove it, or take another method or option (fedsplit methods)"
        words = f'"{asked[0]}" with method {method.name!r} ({places[0].name})'
        yield Problem("server.adapters", found(said), words, fix)


def _first(run: RunFile, method: Method | Phases, differs: Callable[[Method], bool]) -> tuple[str, str, Method]:
    """The first phase that is different: its place in the run file (phases may also be a method's own), its name with
    its round, and itself."""
    starts = method.starts if isinstance(method, Phases) else (0,)
    start, one = next((start, one) for start, one in zip(starts, every(method), strict=True) if differs(one))
    places = [f"method.phases[{i}]" for i, phase in enumerate(run.method.phases) if phase.round == start]
    return next(iter(places), "method"), f"{one.name!r} from round {start} on", one


def _layers(run: RunFile, method: Method | Phases) -> Iterator[Problem]:
    rooms = {one.layers.rooms for one in every(method)}
    said = run.plan.layers
    if len(rooms) > 1:
        before = every(method)[0].layers
        path, which, one = _first(run, method, lambda one: one.layers.rooms != before.rooms)
        local = 'topology = "local", ' if before.rooms else ""
        fix = f'set but = {{ {local}layers = "{before.name}" }} there, or remove the phase'
        words = f"{before.name} as before it: layers are given out in all rounds or in none"
        yield Problem(path, f"{which} with layers = {one.layers.name}", words, fix)
    elif rooms == {True} and said == "fit":
        words = f'"all" with method {method.name!r}, which itself decides which layers a device holds'
        yield Problem("plan.layers", found(said), words, "remove it")
    elif rooms == {False} and said == "rooms":
        fix = "remove it, or take method fedra"
        yield Problem("plan.layers", found(said), f'"all" or "fit" with method {method.name!r}', fix)
    if rooms == {True} and run.plan.coverage:
        words = f"0 with method {method.name!r}, which itself leaves no layer out where rooms allow"
        yield Problem("plan.coverage", str(run.plan.coverage), words, "remove it")
    if rooms == {True} and run.plan.slack != "none":
        words = f'"none" with method {method.name!r}, where a device is given other layers every round'
        yield Problem("plan.slack", found(run.plan.slack), words, "remove it")
