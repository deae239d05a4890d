"""Seven ways to cut a data set, and the manifests that say how it was done."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any, get_args

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsplit.data import laws
from fedsplit.data.partition import Law, Manifest, Request, digest, partition
from fedsplit.data.records import records
from fedsplit.errors import ConfigError, DataError

LABELS = [f"l{i % 6}" for i in range(600)]
Parts = list[np.ndarray[Any, np.dtype[np.int64]]]


def disjoint(parts: Parts) -> bool:
    flat = np.concatenate(parts)
    return len(set(flat.tolist())) == len(flat) and all(np.array_equal(part, np.sort(part)) for part in parts)


def cuts(seed: int = 0) -> dict[str, Parts]:
    return {
        "iid": laws.iid(600, 7, seed),
        "quantity": laws.quantity(600, 7, 0.5, seed),
        "dirichlet": laws.dirichlet(LABELS, 7, 0.3, seed),
        "owned": laws.owned(LABELS, 3, 2, 0.1, seed),
        "grouped": laws.grouped(LABELS, 4),
        "natural": list(laws.natural(LABELS, 0).values()),
    }


@pytest.mark.parametrize("law", cuts())
def test_every_row_goes_to_one_client(law: str) -> None:
    parts = cuts()[law]
    assert disjoint(parts)
    assert sum(map(len, parts)) == 600
    assert min(map(len, parts)) > 0


@pytest.mark.parametrize("law", ["iid", "quantity", "dirichlet", "owned"])
def test_the_seed_decides(law: str) -> None:
    same = zip(cuts()[law], cuts()[law], strict=True)
    assert all(np.array_equal(one, other) for one, other in same)
    assert any(not np.array_equal(one, other) for one, other in zip(cuts()[law], cuts(1)[law], strict=True)), (
        "another seed, another cut"
    )


def test_iid_is_even() -> None:
    assert {len(part) for part in laws.iid(100, 7, 0)} == {14, 15}


def test_dirichlet_is_the_less_even_the_smaller_alpha() -> None:
    def largest_share(alpha: float) -> float:
        parts = laws.dirichlet(LABELS, 5, alpha, 0)
        counts = [Counter(LABELS[int(i)] for i in part) for part in parts]
        return float(np.mean([max(one.values()) / sum(one.values()) for one in counts]))

    shares = [largest_share(alpha) for alpha in (0.05, 0.5, 100)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 0.5
    assert shares[2] < 0.25


def test_owners_have_their_labels_and_few_strangers() -> None:
    parts = laws.owned(LABELS, 3, 2, 0.1, 0)
    for part in parts:
        counts = Counter(LABELS[int(i)] for i in part)
        owned = [label for label, count in counts.items() if count > 50]
        assert len(owned) == 2
        assert 1 - sum(counts[label] for label in owned) / len(part) == pytest.approx(0.1, abs=0.02)
    without = laws.owned(LABELS, 3, 2, 0.0, 0)
    assert all(len({LABELS[int(i)] for i in part}) == 2 for part in without)


def test_a_label_with_two_owners_is_divided() -> None:
    parts = laws.owned(LABELS, 6, 2, 0.0, 0)
    assert sum(map(len, parts)) == 600
    assert {len(part) for part in parts} == {100}


def test_groups_are_whole_and_balanced() -> None:
    keys = ["a"] * 50 + ["b"] * 30 + ["c"] * 25 + ["d"] * 5
    parts = laws.grouped(keys, 2)
    assert [len(part) for part in parts] == [55, 55]
    assert not {keys[int(i)] for i in parts[0]} & {keys[int(i)] for i in parts[1]}


@given(st.integers(2, 12), st.floats(0.2, 50), st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_random_laws_leave_nobody_empty(clients: int, alpha: float, seed: int) -> None:
    for parts in (laws.quantity(600, clients, alpha, seed), laws.dirichlet(LABELS, clients, alpha, seed)):
        assert disjoint(parts)
        assert sum(map(len, parts)) == 600
        assert min(map(len, parts)) > 0


@pytest.mark.parametrize(
    ("cut", "words"),
    [
        (lambda: laws.iid(3, 4, 0), "3 rows are not enough for 4"),
        (lambda: laws.dirichlet(["a"] * 10, 9, 0.001, 0), "raise alpha"),
        (lambda: laws.grouped(["a", "b"], 3), "only 2 values"),
        (lambda: laws.natural(["a", "b"], 3), "only 2 owners"),
        (lambda: laws.owned(["a", "b"], 2, 3, 0, 0), "only 2"),
    ],
)
def test_what_cannot_be_cut(cut: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        cut()


# ---- files ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path: Path) -> Path:
    rows = [{"text": f"ünï {i}", "label": f"l{i % 4}", "lang": f"x{i % 3}", "user": f"U {i % 5}/a"} for i in range(120)]
    file = tmp_path / "all.jsonl.gz"
    file.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    return file


def rows_of(folder: Path, manifests: list[Manifest]) -> list[str]:
    return [record.fields["text"] for one in manifests for record in records(folder / one.file)]


@pytest.mark.parametrize("law", get_args(Law))
def test_files_and_manifests(tmp_path: Path, source: Path, law: Law) -> None:
    request = Request(law=law, clients=3, field="lang" if law == "field" else "", seed=4)
    manifests = partition(source, tmp_path / "out", request)
    assert len(manifests) == 3
    written = rows_of(tmp_path / "out", manifests)
    assert len(set(written)) == len(written)
    assert len(written) + manifests[0].left_out == 120
    for one in manifests:
        file = tmp_path / "out" / one.file
        assert one.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
        assert one.source_sha256 == hashlib.sha256(source.read_bytes()).hexdigest()
        stored = msgspec.json.decode((tmp_path / "out" / f"{one.client}.manifest.json").read_bytes(), type=Manifest)
        assert stored == one
        assert (one.law, one.seed, one.clients, one.source) == (law, 4, 3, "all.jsonl.gz")
        found = list(records(file))
        assert len(found) == one.rows
        if one.field:
            assert one.values == dict(sorted(Counter(str(row.fields[one.field]) for row in found).items()))
    again = partition(source, tmp_path / "again", request)
    assert [one.sha256 for one in again] == [one.sha256 for one in manifests]


def test_owners_become_file_names(tmp_path: Path, source: Path) -> None:
    manifests = partition(source, tmp_path / "out", Request(law="natural", clients=0))
    assert [one.client for one in manifests] == [f"U-{i}-a" for i in range(5)]
    rows = [{"text": "x", "user": user} for user in ("a b", "a/b", "A.b", "")]
    file = tmp_path / "odd.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    names = [one.client for one in partition(file, tmp_path / "odd", Request(law="natural", clients=0))]
    assert len({name.lower() for name in names}) == 4


def test_csv_and_arrays_and_images(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("text,label\n" + "".join(f"t{i},{i % 2}\n" for i in range(10)))
    manifests = partition(file, tmp_path / "csv", Request(law="iid", clients=2))
    assert sorted(rows_of(tmp_path / "csv", manifests)) == sorted(f"t{i}" for i in range(10))
    np.savez(tmp_path / "a.npz", images=np.zeros((10, 2, 2, 3), np.uint8), labels=np.arange(10) % 2)
    manifests = partition(tmp_path / "a.npz", tmp_path / "npz", Request(law="label", clients=2, per_client=1))
    assert [len({record.fields["label"] for record in records(tmp_path / "npz" / one.file)}) for one in manifests] == [
        1,
        1,
    ]


def test_image_folders_keep_their_files(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="pip install pillow")
    from fedsplit.config.run import DataSection
    from fedsplit.data import images
    from fedsplit.data.rows import read

    for name in ("cat", "dog"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(4):
            image.new("RGB", (3, 3)).save(tmp_path / "set" / name / f"{i}.png")
    manifests = partition(tmp_path / "set", tmp_path / "out", Request(law="iid", clients=2))
    for one in manifests:
        for row in read(tmp_path / "out" / one.file, DataSection(), "image-classification", ("cat", "dog")):
            assert images.decode(row.image, row.file, row.line).shape == (3, 3, 3)


def test_refusals(tmp_path: Path, source: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        partition(source, tmp_path / "out", Request(law="label", clients=0, alpha=0, per_client=0, strangers=1))
    assert {problem.path for problem in caught.value.problems} == {
        "--clients",
        "--alpha",
        "--per-client",
        "--strangers",
    }
    with pytest.raises(ConfigError, match="is not empty"):
        partition(source, tmp_path, Request())
    with pytest.raises(ConfigError, match="is a file"):
        partition(source, source, Request())
    with pytest.raises(DataError, match='expected "topic"'):
        partition(source, tmp_path / "out", Request(law="label", field="topic"))
    with pytest.raises(DataError, match="name of one of them with --field"):
        partition(source, tmp_path / "out", Request(law="field"))
    assert not (tmp_path / "out").exists(), "nothing is written before all is known"


def test_many_clients_need_few_open_files(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text("".join(f'{{"text": "t{i}"}}\n' for i in range(3000)))
    assert len(partition(file, tmp_path / "out", Request(law="iid", clients=1500))) == 1500


def test_a_folder_has_one_digest(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_text("1")
    before = digest(tmp_path / "a")
    (tmp_path / "a" / "y").write_text("")
    assert digest(tmp_path / "a") != before


def test_public_sets(shared: Path, tmp_path: Path) -> None:
    manifests = partition(shared / "dolly" / "test.jsonl.gz", tmp_path / "dolly", Request(law="natural", clients=0))
    assert len(manifests) == 9
    assert sum(one.rows for one in manifests) == 535
    request = Request(law="domain", clients=5, per_client=2, field="family", strangers=0.05)
    manifests = partition(shared / "sib200" / "dev.jsonl.gz", tmp_path / "sib", request)
    assert sum(one.rows for one in manifests) == 3960
