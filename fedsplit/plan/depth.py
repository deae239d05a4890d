"""Keys of a run file that rest on the model's layers: checked once the model is known, all at once."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from fedsplit.config.run import ClientSection, RunFile
from fedsplit.errors import ConfigError, PlanError, Problem


def check_depth(run: RunFile, num_layers: int) -> None:
    """Raises PlanError with every key that asks for more layers than the model's ``num_layers``."""
    problems = [*_front(run, num_layers)]
    for index, client in enumerate(run.clients):
        problems += _cut(client, num_layers, f"clients[{index}].cut")
    if problems:
        lines = "".join(f"\n  {problem}" for problem in problems)
        has = f"{num_layers} layers" if num_layers > 1 else "1 layer"
        raise PlanError(f"the model has {has} (binding: policy):{lines}")


def check_kinds(run: RunFile, kinds: Collection[str]) -> None:
    """Raises ConfigError where the method leaves layers out (``plan.layers = "rooms"``) of a model that has several
    ``kinds`` of them."""
    if run.plan.layers == "rooms" and len(kinds) > 1:
        fix = "take another method (fedsplit methods), or another model"
        found = f"a model whose layers are {' and '.join(sorted(kinds))} with method {run.method.name!r}"
        raise ConfigError([Problem("model.path", found, "layers of one kind, which can be left out", fix)])


def _front(run: RunFile, num_layers: int) -> Iterator[Problem]:
    """The default of 1 asks nothing of a model of one layer: its devices train alone."""
    policy, most = run.policy, max(1, num_layers - 1)
    if policy.topologies and not {"u", "v"} & set(policy.topologies):
        return
    if policy.min_front > most:
        fix = f'lower it to {most}, or keep devices to themselves with policy.topologies = ["local"]'
        expected = f"at most {most}, so that the server has a layer"
        yield Problem("policy.min_front", str(policy.min_front), expected, fix)


def _cut(client: ClientSection, layers: int, path: str) -> Iterator[Problem]:
    if client.cut is None:
        return
    (c1, c2), topology = client.cut, client.topology
    shown = f"[{c1}, {c2}]"
    if c2 > layers:
        yield Problem(path, shown, f"at most {layers}", "it is a cut that this model does not have")
    elif topology in ("v", "w") and c2 < layers:
        fix = f"write [{c1}, {layers}], or take topology u"
        yield Problem(path, shown, f"c2 = {layers} with topology {topology}", fix)
    elif topology == "u" and (c1, c2) == (0, layers):
        yield Problem(path, shown, "a layer of the device's own with topology u", "take topology w for this cut")
