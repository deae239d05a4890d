"""Contradictions of ``[policy]`` and ``[plan]``: refused at once, with their paths."""

from __future__ import annotations

import pytest

from fedsplit.config.load import dumps, loads
from fedsplit.errors import ConfigError, Problem

MODEL = '[model]\npath = "pydoc-llama"\n'


def problems(text: str) -> dict[str, Problem]:
    with pytest.raises(ConfigError) as caught:
        loads(text)
    return {problem.path: problem for problem in caught.value.problems}


def test_permissions_are_needed_wherever_a_topology_is_named() -> None:
    found = problems(
        MODEL
        + """
        [policy]
        topologies = ["v", "w", "u", "u"]
        min_rank = 9
        min_wire_bits = 64
        max_server_bytes = -1
        round_s = 700.0
        [plan]
        ranks = [8, 0, 2, 2, 1, 32]
        [[clients]]
        name = "pi"
        topology = "local"
        """
    )
    assert set(found) == {
        "policy.topologies[0]",
        "policy.topologies[1]",
        "policy.topologies[3]",
        "policy.min_rank",
        "policy.min_wire_bits",
        "policy.max_server_bytes",
        "policy.round_s",
        "plan.layers",
        "plan.ranks[0]",
        "plan.ranks[1]",
        "plan.ranks[2]",
        "plan.ranks[3]",
        "plan.ranks[4]",
        "clients[0].topology",
    }
    assert "policy.shares_labels = true" in found["policy.topologies[0]"].expected
    assert "policy.exposes_tokens = true" in found["policy.topologies[1]"].expected
    assert "lora.rank = 8" in found["policy.min_rank"].expected
    assert "rounds.deadline_s = 600" in found["policy.round_s"].expected
    assert found["plan.layers"].expected == '"fit" with plan.ranks below lora.rank'
    assert found["plan.ranks[0]"].expected == "another rank than lora.rank"
    assert found["plan.ranks[1]"].expected == "at least 1"
    assert found["plan.ranks[3]"].expected == "every rank once"
    assert found["plan.ranks[4]"].expected == "at least policy.min_rank = 9"


@pytest.mark.parametrize(
    ("text", "path", "words"),
    [
        ('topologies = ["local"]\n[[clients]]\nname = "a"\ncut = [2, 4]', "clients[0].cut", 'add "u"'),
        ('topologies = ["u"]\n[[clients]]\nname = "a"\ncut = [4, 4]', "clients[0].cut", 'add "local"'),
        ('topologies = ["local"]\n[[clients]]\nname = "a"\ntopology = "u"', "clients[0].topology", "local"),
        ('topologies = ["x"]', "policy.topologies[0]", '"local", "u", "v", "w"'),
        ("round_s = nan", "policy.round_s", "at least 0"),
        ("min_rank = 0", "policy.min_rank", "at least 1"),
        ("min_wire_bits = 33", "policy.min_wire_bits", "at most 32"),
        ('[plan]\nlayers = "some"', "plan.layers", '"fit"'),
    ],
)
def test_each_contradiction_has_its_path(text: str, path: str, words: str) -> None:
    found = problems(MODEL + "[policy]\n" + text)
    assert list(found) == [path]
    assert words in str(found[path])


def test_bfloat16_has_no_32_bits() -> None:
    found = problems(MODEL + 'dtype = "bfloat16"\n[policy]\nmin_wire_bits = 32\n')
    assert found["policy.min_wire_bits"].expected == 'at most 16 with model.dtype = "bfloat16"'


def test_a_policy_that_holds_together_is_read() -> None:
    text = """
    [policy]
    shares_labels = true
    topologies = ["u", "v"]
    min_rank = 4
    min_wire_bits = 32
    max_server_bytes = 8_000_000_000
    round_s = 30
    [plan]
    layers = "fit"
    ranks = [4, 6]
    checkpoint = false
    replan = false
    [[clients]]
    name = "pi"
    cut = [1, 3]
    """
    run = loads(MODEL + text)
    assert run.policy.topologies == ("u", "v")
    assert run.plan.ranks == (4, 6)
    assert loads(MODEL + "[plan]\nranks = [16]\n").plan.layers == "all"
    assert loads(dumps(run)) == run
