"""The table of docs/methods-fit.md; and the record says what the hardest methods need, without ignoring any of it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedsplit.errors import IncompatibleParts
from fedsplit.lora import LowRank, ModuleKey
from fedsplit.method import Ask, Memory, Merged, Method, check, mean, merge_rule, phases, stock
from fedsplit.method.parts import Codec, FactorRule, Factors, Groups, LayerChoice, LayerRule, Mask, Start
from fedsplit.method.ranks import RankRule
from fedsplit.method.record import SLOTS
from fedsplit.method.registry import cards
from fedsplit.train.round import run_round
from tests.methods.cases import SHAPES, start, three

PAGE = (Path(__file__).parents[2] / "docs" / "methods-fit.md").read_text(encoding="utf-8")
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line.startswith("| ")]
METHODS = [row for row in ROWS if len(row) == 5 and row[0] != "method"]


def test_every_method_fits() -> None:
    assert len(METHODS) >= 50
    assert len({row[0] for row in METHODS}) == len(METHODS)
    assert [row[0] for row in METHODS if row[4]] == []


def test_the_table_speaks_of_parts_that_exist() -> None:
    known = {*SLOTS, "phases"}
    for row in METHODS:
        named = set(re.findall(r"`([a-z_]+)`", row[2]))
        assert named <= known, f"{row[0]}: {named - known}"


def test_every_built_method_is_in_the_table() -> None:
    papers = " ".join(row[1] for row in METHODS)
    for card in cards():
        assert card.paper in papers, f"{card.name} is missing in docs/methods-fit.md"


# ---- the hardest ones as records -------------------------------------------------------------------------------------

only_A = Factors(frozenset("A"), frozenset("A"), drawn=frozenset("B"))


@merge_rule(equal_ranks=True, mutates_base=True)
def fold_mean(parts: list[LowRank], p_K: list[float], memory: Memory) -> Merged:
    average = mean(parts, p_K)
    return Merged(LowRank.zeros(average, average.rank), fold=average)


def half(ask: Ask) -> LayerChoice:
    return LayerChoice(frozenset(range(ask.layers)), frozenset({0, 1}), shares=frozenset({1}))


def of_N(ask: Ask, key: ModuleKey) -> int:
    return ask.shapes[key][1]


identity = Method(
    start=Start("identity", "identity", stock.averaged.then),
    factors=FactorRule("sparse", lambda round: replace(stock.only_B.of(round), drawn=frozenset("A"))),
    ranks=RankRule("of_N", of_N, LowRank.truncate, equal=True),
    mask=Mask("random", 0.01, 0.01),
)
HARD = {
    "CoLR": Method(
        factors=FactorRule("only_A", lambda round: only_A),
        start=Start("orthonormal", "orthonormal_B", stock.redrawn.then, redraws=True),
        merge=fold_mean,
    ),
    "SLoRA": phases({0: identity, 5: Method()}),
    "FeDeRA": Method(start=Start("svd_of_base", "svd", stock.averaged.then, offset=True)),
    "Fed-piLot": Method(layers=LayerRule("knapsack", half)),
    "FedHLT": Method(groups=Groups("tree", lambda ask: ("all", ask.tags["family"]))),
    "FL-TAC": Method(groups=Groups("by_similarity", lambda ask: ("new",), after=lambda updates: ["a"] * len(updates))),
    "wireless split": Method(topology=stock.u, codec=Codec("int8", hidden="int8", gradient="int8")),
}


@pytest.mark.parametrize("name", HARD)
def test_what_has_no_code_yet_is_said_and_refused(name: str) -> None:
    with pytest.raises(IncompatibleParts, match="this version carries out"):
        check(HARD[name])


def test_what_everybody_draws_does_not_travel() -> None:
    colr = HARD["CoLR"].at(0)
    assert colr.traffic(11, 7, 3) == (3 * 7, 3 * 7)
    slora = HARD["SLoRA"].at(0)
    assert slora.traffic(100, 70, 70) == (70, 70)
    assert Method(factors=stock.only_B).traffic(11, 7, 3) == (3 * (11 + 7), 3 * 11)


def test_a_rank_may_depend_on_the_shape_and_groups_on_tags() -> None:
    key = ModuleKey(0, "q")
    ask = Ask(round=0, client="ann", seed=0, layers=2, rank=8, shapes={key: (11, 7)}, tags={"family": "bantu"})
    assert identity.ranks.of(ask, key) == 7
    assert HARD["FedHLT"].at(0).groups.of(ask) == ("all", "bantu")
    assert half(ask).shares == {1}
    assert stock.one.of(ask) == ("all",)


def test_a_start_that_redraws_needs_a_merge_that_folds() -> None:
    again = Start("averaged", "kaiming_zero", stock.redrawn.then, redraws=True)
    with pytest.raises(IncompatibleParts, match="start = averaged does not go with merge = fedavg"):
        check(Method(start=again))


def test_a_merge_sees_whose_the_parts_are_and_which_components_came() -> None:
    seen: dict[ModuleKey, Memory] = {}

    @merge_rule(equal_ranks=True)
    def looks(parts: list[LowRank], p_K: list[float], memory: Memory) -> Merged:
        seen[memory.key] = memory
        return Merged(mean(parts, p_K))

    ann, bob, cyd = three()
    keys = list(SHAPES)
    bob = replace(bob, sent={keys[0]: frozenset({0, 2})}, adapter={key: bob.adapter[key] for key in keys[:2]})
    after = run_round(start(), [cyd, bob, ann], Method(merge=looks))
    assert after.round == 1
    assert (seen[keys[0]].clients, seen[keys[0]].sent) == (("ann", "bob", "cyd"), (None, frozenset({0, 2}), None))
    assert (seen[keys[2]].clients, seen[keys[2]].sent) == (("ann", "cyd"), (None, None))
    np.testing.assert_array_equal(seen[keys[0]].previous.B_MR, start().adapter[keys[0]].B_MR)
