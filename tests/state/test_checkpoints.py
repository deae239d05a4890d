"""Checkpoints come back as they were saved, or say what is wrong with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedsplit.errors import DataError, InternalError
from fedsplit.seeds import generator
from fedsplit.state import checkpoints


def arrays(round: int) -> dict[str, NDArray[Any]]:
    rng = generator("checkpoint", round)
    return {
        "3/attention.q/A": rng.standard_normal((5, 11), np.float32),
        "3/attention.q/B": rng.standard_normal((7, 5), np.float32),
        "step": np.array(round),
        "empty": np.zeros((0, 3), np.float16),
    }


def equal(found: dict[str, NDArray[Any]], round: int) -> bool:
    expected = arrays(round)
    return found.keys() == expected.keys() and all(
        found[name].dtype == expected[name].dtype
        and found[name].shape == expected[name].shape
        and found[name].tobytes() == expected[name].tobytes()
        for name in expected
    )


def test_round_trip(tmp_path: Path) -> None:
    meta = {"adapter_version": 3, "best": {"round": 1, "value": 0.5}, "name": "läufer"}
    folder = checkpoints.save(tmp_path, 3, arrays(3), meta)
    assert folder == tmp_path / "0003"
    loaded = checkpoints.load(tmp_path)
    assert loaded is not None
    assert (loaded.round, loaded.meta, loaded.warnings) == (3, meta, ())
    assert equal(loaded.arrays, 3)
    loaded.arrays["step"] += 1  # writable


def test_nothing_there(tmp_path: Path) -> None:
    assert checkpoints.load(tmp_path / "absent") is None
    assert checkpoints.latest(tmp_path / "absent") is None
    assert checkpoints.load(tmp_path) is None


def test_memory_layout_does_not_matter(tmp_path: Path) -> None:
    """safetensors writes raw memory: transposed, strided and big-endian arrays must be straightened first."""
    plain = generator("layout").standard_normal((6, 10), np.float32)
    odd = {"transposed": plain.T, "strided": plain[::2, ::3], "big": plain.astype(">f4"), "scalar": plain[0, 0]}
    checkpoints.save(tmp_path, 0, {name: np.asarray(value) for name, value in odd.items()})
    loaded = checkpoints.load(tmp_path)
    assert loaded is not None
    for name, value in odd.items():
        np.testing.assert_array_equal(loaded.arrays[name], value)
        assert loaded.arrays[name].shape == np.shape(value)


def test_same_content_same_bytes(tmp_path: Path) -> None:
    first, second = (checkpoints.save(tmp_path / name, 1, arrays(1), {"b": 1, "a": 2}) for name in ("x", "y"))
    assert sorted(path.name for path in first.iterdir()) == sorted(path.name for path in second.iterdir())
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes()


def test_saving_a_round_again_replaces_it(tmp_path: Path) -> None:
    checkpoints.save(tmp_path, 2, arrays(1))
    checkpoints.save(tmp_path, 2, arrays(2))
    checkpoints.save(tmp_path, 2, arrays(2))
    loaded = checkpoints.load(tmp_path)
    assert loaded is not None
    assert equal(loaded.arrays, 2)
    assert len(list((tmp_path / "0002").iterdir())) == 2


def test_unfit_array_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InternalError, match=r"'x' has dtype complex"):
        checkpoints.save(tmp_path, 0, {"x": np.zeros(3, complex)})
    assert checkpoints.latest(tmp_path) is None


def test_keep_and_best(tmp_path: Path) -> None:
    for round in range(8):
        checkpoints.save(tmp_path, round, arrays(round), keep=3, best=[2] if round >= 2 else [])
    assert checkpoints.rounds(tmp_path) == (2, 5, 6, 7)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0002", "0005", "0006", "0007"]


def test_many_rounds_stay_in_order(tmp_path: Path) -> None:
    for round in (9999, 10000, 3):
        checkpoints.save(tmp_path, round, arrays(round))
    assert checkpoints.rounds(tmp_path) == (3, 9999, 10000)
    assert checkpoints.latest(tmp_path) == 10000


def flip_byte(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 0x40
    path.write_bytes(content)


def damage(folder: Path, how: str) -> None:
    weights = next(folder.glob("*.safetensors"))
    manifest = folder / "manifest.json"
    if how == "flipped bit in the weights":
        flip_byte(weights, -3)
    elif how == "weights cut short":
        weights.write_bytes(weights.read_bytes()[:-1])
    elif how == "weights gone":
        weights.unlink()
    elif how == "manifest cut short":
        manifest.write_bytes(manifest.read_bytes()[:-10])
    elif how == "manifest edited":
        manifest.write_text(manifest.read_text().replace('"kept"', '"kepT"'))
    elif how == "manifest of another round":
        manifest.write_bytes((folder.parent / "0001" / "manifest.json").read_bytes())
    elif how == "manifest names a file elsewhere":
        content = json.loads(manifest.read_text())
        content["files"] = {"../0001/manifest.json": {"sha256": "0", "nbytes": 1}}
        manifest.write_text(json.dumps(content))


DAMAGES = [
    "flipped bit in the weights",
    "weights cut short",
    "weights gone",
    "manifest cut short",
    "manifest edited",
    "manifest of another round",
    "manifest names a file elsewhere",
]


@pytest.mark.parametrize("how", DAMAGES)
def test_damage_is_found_and_passed_over(tmp_path: Path, how: str) -> None:
    for round in (1, 2):
        checkpoints.save(tmp_path, round, arrays(round), {"fact": "kept"})
    damage(tmp_path / "0002", how)
    loaded = checkpoints.load(tmp_path)
    assert loaded is not None
    assert loaded.round == 1
    assert equal(loaded.arrays, 1)
    (warning,) = loaded.warnings
    assert str(tmp_path / "0002") in warning
    assert warning.endswith("going on from round 1")
    with pytest.raises(DataError, match="0002"):
        checkpoints.load(tmp_path, 2, exact=True)


def test_no_good_one_left(tmp_path: Path) -> None:
    for round in (1, 2):
        checkpoints.save(tmp_path, round, arrays(round))
        flip_byte(next((tmp_path / f"000{round}").glob("*.safetensors")), 40)
    with pytest.raises(DataError, match=r"(?s)no good checkpoint is left.*0002.*0001"):
        checkpoints.load(tmp_path)


def test_up_to_a_round(tmp_path: Path) -> None:
    for round in (1, 2, 5):
        checkpoints.save(tmp_path, round, arrays(round))
    assert [getattr(checkpoints.load(tmp_path, r), "round", None) for r in (0, 2, 4, 9)] == [None, 2, 2, 5]
    assert checkpoints.load(tmp_path, 4, exact=True) is None


def test_future_format_says_so(tmp_path: Path) -> None:
    folder = checkpoints.save(tmp_path, 1, arrays(1))
    content = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(content | {"format": 9}))
    with pytest.raises(DataError, match="found format 9, expected 1"):
        checkpoints.load(tmp_path)


def test_full_disk_is_a_clear_error_and_loses_nothing(tmp_path: Path) -> None:
    checkpoints.save(tmp_path, 1, arrays(1))
    (tmp_path / ".0002.aside").write_text("")  # a file where the folder should go
    (tmp_path / "0002").write_text("")  # and the name is taken by something that is no folder
    with pytest.raises(DataError, match="0002: cannot be written: "):
        checkpoints.save(tmp_path, 2, arrays(2))
    loaded = checkpoints.load(tmp_path)
    assert loaded is not None
    assert loaded.round == 1
