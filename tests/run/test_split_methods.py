"""SplitFed and SplitLoRA: what a method settles, what its versions equal, and that they run between real processes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedsplit.config.load import loads
from fedsplit.errors import ConfigError
from fedsplit.method.of_run import method_of
from fedsplit.method.settled import settled
from fedsplit.plan.types import Topology
from tests.run.conftest import Rows, run_file
from tests.run.party import Party, written
from tests.run.processes import Stage

Make = Callable[..., Party]
CUTS = {"a": "cut = [1, 3]", "b": "cut = [2, 5]", "c": "cut = [3, 6]"}
ONE = {"a": "cut = [1, 3]"}
SGD: dict[str, object] = {"train__optimizer": "sgd", "train__learning_rate": 0.1}


def of(name: str, clients: dict[str, str] | None = None, **settings: Any) -> Any:
    run = loads(run_file(clients or {"a": ""}, method__name=name, **settings))
    return settled(run, method_of(run))


def test_a_method_settles_copies_and_topologies() -> None:
    run = of("splitlora")
    assert run.server.adapters == "shared-concat"
    assert "local" not in run.policy.topologies
    assert settled(run, method_of(run)) == run
    turns = of("splitfed", **{"method.options__version": "v2"}, policy__topologies=["local", "u"])
    assert (turns.server.adapters, turns.policy.topologies) == ("shared-sequential", ("u",))
    assert not of("fedavg").server.shared
    closed = of("splitfed", policy__shares_labels=False, policy__exposes_tokens=False, policy__min_front=1)
    assert closed.policy.topologies == ("u",)


@pytest.mark.parametrize(("topology", "key"), [("v", "shares_labels"), ("w", "exposes_tokens")])
def test_a_topology_that_is_not_permitted_names_its_key(topology: str, key: str) -> None:
    closed: dict[str, object] = {f"policy__{one}": False for one in ("shares_labels", "exposes_tokens")}
    run = loads(run_file({"a": ""}, **closed, policy__min_front=1) + f'\n[method]\nbut = {{ topology = "{topology}" }}')
    with pytest.raises(ConfigError, match=rf"none permitted, expected {topology} .*set policy\.{key} = true if"):
        settled(run, method_of(run))


@pytest.mark.parametrize(
    ("settings", "found", "expected"),
    [
        ({"server__adapters": "per-client"}, r'server.adapters: found "per-client"', "shared-concat.*splitlora"),
        ({"policy__topologies": ["local"]}, r"policy.topologies: found local", "splitlora"),
        ({"clients": {"a": 'topology = "local"'}}, r'clients\[0\].topology: found "local"', "splitlora"),
        ({"plan__slack": "steps"}, r"plan.slack", "shared-concat"),
        ({"plan__layers": "rooms"}, r'plan.layers: found "rooms"', "splitlora"),
    ],
)
def test_what_the_file_says_otherwise_is_refused_with_both_names(
    settings: dict[str, Any], found: str, expected: str
) -> None:
    with pytest.raises(ConfigError, match=f"(?s){found}.*{expected}"):
        of("splitlora", **settings)


def test_splitfed_v1_is_fedavg_on_the_unsplit_model(party: Make, reference: Make) -> None:
    settings = {"train__rounds": 2, "lora__dropout": 0.1}
    whole = reference(dict.fromkeys(CUTS, 'topology = "local"'), **settings)
    split = party(CUTS, **settings, method__name="splitfed")
    assert {member.plan.topology for member in split.host.roster} <= {Topology.U, Topology.V, Topology.W}
    assert split.digest == whole.digest


def test_splitfed_v2_of_one_client_is_v1(party: Make) -> None:
    runs = [
        party(ONE, **SGD, train__rounds=2, method__name="splitfed", **{"method.options__version": version})
        for version in ("v1", "v2")
    ]
    assert runs[0].digest == runs[1].digest


def test_splitlora_trains_one_copy(party: Make) -> None:
    """Together and in turn are other trainings; of one client they are the same."""
    found = {}
    for server in ("together", "in-turn"):
        many, one = (
            party(clients, **SGD, train__rounds=2, method__name="splitlora", **{"method.options__server": server})
            for clients in (CUTS, ONE)
        )
        assert many.host.course._run.server.shared
        found[server] = many.digest, one.digest
    assert found["together"][0] != found["in-turn"][0]
    assert found["together"][1] == found["in-turn"][1]


@pytest.mark.soak
@pytest.mark.parametrize("settings", [{"method__name": "splitlora"}, {"method__name": "splitfed"}], ids=str)
def test_processes_over_tcp_end_with_the_same_bits(
    tmp_path: Path, rows: Callable[[str], dict[str, Rows]], reference: Make, settings: dict[str, object]
) -> None:
    data = {name: written(tmp_path / f"{name}.jsonl", own) for name, own in rows("ab").items()}
    two = {name: CUTS[name] for name in data}
    with Stage(tmp_path, run_file(two, **settings), data) as run:
        server = run.serve()
        run.link()
        for process in [*(run.join(name) for name in data), server]:
            process.end()
        assert server.finished.digest == reference(two, **settings).digest
