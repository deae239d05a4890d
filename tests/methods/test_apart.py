"""FedSA-LoRA and FedLFC on numbers: against naive versions, by hand, and the families against a real table."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedsplit.errors import IncompatibleParts
from fedsplit.lora import LowRank, ModuleKey
from fedsplit.lora.adapter import select
from fedsplit.method import ClientUpdate, GlobalState, Method, phases, stock
from fedsplit.method.check import check
from fedsplit.method.languages import FAMILIES, family_of
from fedsplit.method.merge import exact
from fedsplit.method.parts import Ask
from fedsplit.methods.fedavg import fedavg
from fedsplit.methods.fedlfc import fedlfc
from fedsplit.methods.fedsa_lora import fedsa_lora
from fedsplit.train.round import run_round, with_own
from tests.methods.cases import SHAPES, start, three
from tests.reference import apart

KEYS = list(SHAPES)
KEY = ModuleKey(0, "q")


def clients(updates: list[ClientUpdate]) -> apart.Clients:
    return {one.client: (one.examples, {k: (p.B_MR, p.A_RN) for k, p in one.adapter.items()}) for one in updates}


def test_fedsa_equals_the_naive_version() -> None:
    updates = [replace(one, at_server=frozenset(KEYS)) for one in three()]
    updates[0] = replace(updates[0], adapter=select(updates[0].adapter, keys=KEYS[:2]), at_server=frozenset(KEYS[:2]))
    before = start()
    after = run_round(before, updates, fedsa_lora())
    pairs = {key: (part.B_MR, part.A_RN) for key, part in before.adapter.items()}
    common, dense = apart.share_a(clients(updates), pairs)
    for key, a_RN in common.items():
        np.testing.assert_allclose(after.adapter[key].A_RN, a_RN, rtol=1e-6, atol=1e-7)
    for one in updates:
        mine = with_own(after, one.client, {key: after.adapter[key] for key in one.adapter})
        for key, part in mine.items():
            np.testing.assert_allclose(part.dense(), dense[one.client][key], rtol=1e-5, atol=1e-5)


def test_fedlfc_equals_the_naive_version() -> None:
    families = {"ann": "slavic", "bob": "bantu", "cyd": "slavic"}
    updates = [replace(one, group=families[one.client]) for one in three()]
    before = start()
    after = run_round(before, updates, fedlfc())
    pairs = {key: (part.B_MR, part.A_RN) for key, part in before.adapter.items()}
    for family, factors in apart.by_family(clients(updates), families, pairs).items():
        for key, (b_MR, a_RN) in factors.items():
            np.testing.assert_allclose(after.groups[family].adapter[key].B_MR, b_MR, rtol=1e-6, atol=1e-7)
            np.testing.assert_allclose(after.groups[family].adapter[key].A_RN, a_RN, rtol=1e-6, atol=1e-7)


def test_fedsa_by_hand() -> None:
    """m = 2, n = 3, r = 1; weights 1/4 and 3/4; a product B_k A for each client, no product averaged."""
    b1, a1 = np.array([[2.0], [4.0]]), np.array([[1.0, 0.0, 1.0]])
    b2, a2 = np.array([[6.0], [-2.0]]), np.array([[0.0, 2.0, 1.0]])
    state = GlobalState.first({KEY: LowRank(np.zeros((2, 1)), a1)})
    updates = [
        ClientUpdate(client=c, examples=n, base_version=0, adapter={KEY: LowRank(b, a)}, at_server=frozenset({KEY}))
        for c, n, b, a in (("a", 1, b1, a1), ("b", 3, b2, a2))
    ]
    after = run_round(state, updates, fedsa_lora())
    np.testing.assert_array_equal(after.adapter[KEY].A_RN, [[0.25, 1.5, 1.0]])
    np.testing.assert_array_equal(after.adapter[KEY].B_MR, np.zeros((2, 1)))
    np.testing.assert_array_equal(with_own(after, "a", after.adapter)[KEY].dense(), [[0.5, 3, 2], [1, 6, 4]])
    np.testing.assert_array_equal(with_own(after, "b", after.adapter)[KEY].dense(), [[1.5, 9, 6], [-0.5, -3, -2]])
    np.testing.assert_array_equal(with_own(after, "new", after.adapter)[KEY].dense(), np.zeros((2, 3)))


def test_a_factor_of_another_rank_is_not_taken_for_ones_own() -> None:
    state = replace(GlobalState.first({}), memory={"own/a/0/q/B": np.ones((2, 1))})
    wider = {KEY: LowRank(np.zeros((2, 2)), np.ones((2, 3)))}
    assert not with_own(state, "a", wider)[KEY].B_MR.any()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (fedsa_lora().but(merge=exact), "no products to merge"),
        (fedsa_lora().but(factors=stock.both), "personal = keep_B does not go with factors = both"),
        (Method(factors=stock.share_A), "personal = none does not go with factors = share_A"),
    ],
)
def test_parts_that_contradict_each_other_are_refused(wrong: Method, words: str) -> None:
    with pytest.raises(IncompatibleParts, match=words):
        check(wrong)


def test_phases_keep_apart_the_same_or_nothing() -> None:
    with pytest.raises(IncompatibleParts, match="personal = keep_B from round 3 does not go with personal = none"):
        check(phases({0: fedavg(), 3: fedsa_lora()}))
    with pytest.raises(IncompatibleParts, match="groups = by_tag from round 3 does not go with groups = by_family"):
        check(phases({0: fedlfc(), 3: fedlfc(groups="tags")}))


def test_codes_have_families() -> None:
    assert [family_of(tag) for tag in ("de", "deu", "deu_Latn", "de-AT", "GERMANIC", " nl ")] == ["germanic"] * 6
    assert family_of("") == family_of("tlh") == family_of("depp") == ""
    codes = [code for codes in FAMILIES.values() for code in codes.split()]
    assert len(codes) == len(set(codes))
    ask = Ask(round=0, client="a", seed=0, layers=1, rank=1)
    assert [stock.by_family.of(replace(ask, tags={"family": f})) for f in ("romance", "")] == [("romance",), ("other",)]
    assert [stock.by_tag.of(replace(ask, tags=tags)) for tags in ({"tag": "Pi"}, {})] == [("Pi",), ("other",)]


def test_the_families_are_those_of_sib_200(shared: Path) -> None:
    with gzip.open(shared / "sib200" / "dev.jsonl.gz", "rt", encoding="utf-8") as lines:
        known = {(row["lang"], row["family"]) for row in map(json.loads, lines)}
    assert len(known) == 40
    assert {lang: family_of(lang) for lang, _ in known} == dict(known)
