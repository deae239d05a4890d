"""Images from folders and arrays, and the numbers a vision model gets."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fedsplit.config.load import loads
from fedsplit.config.run import DataSection
from fedsplit.data import images
from fedsplit.data.batches import collate
from fedsplit.data.dataset import open_dataset
from fedsplit.data.records import describe, records
from fedsplit.data.rows import read
from fedsplit.errors import DataError

Image = pytest.importorskip("PIL.Image", reason="pip install pillow")
RANDOM = np.random.default_rng(0)
RUN = loads('[model]\npath = "x"\ntask = "image-classification"\nlabels = ["cat", "dog"]\n')
PLAIN = images.Preparation((4, 6))


def noise(*shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return RANDOM.integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, count in (("dog", 3), ("cat", 2)):
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(noise(5, 7, 3)).save(tmp_path / "set" / name / f"{i}.png")
    (tmp_path / "set" / "cat" / "notes.txt").write_text("no image")
    return tmp_path / "set"


@pytest.mark.parametrize(
    "sizes", [(32, 32, 224, 224), (97, 61, 32, 30), (33, 47, 33, 20), (20, 20, 7, 41), (5, 5, 5, 5)]
)
def test_resizing_equals_pillow(sizes: tuple[int, int, int, int]) -> None:
    height, width, new_height, new_width = sizes
    image = noise(height, width, 3)
    wanted = np.asarray(Image.fromarray(image).resize((new_width, new_height), Image.Resampling.BILINEAR))
    found = images.resize(image, new_height, new_width)
    # Pillow computes in fixed point: the last bit may differ.
    assert np.abs(found.astype(int) - wanted).max() <= 1


def test_a_folder_with_a_class_a_folder(folder: Path) -> None:
    assert describe(folder) == "a folder with one sub-folder of images a class"
    rows = list(read(folder, DataSection(), "image-classification", ("cat", "dog")))
    assert [row.label for row in rows] == [0, 0, 1, 1, 1]
    data = open_dataset(folder, RUN, None, preparation=PLAIN, fraction=0.0)
    assert data.train.pixels is not None
    assert data.train.pixels.shape == (5, 4, 6, 3)
    with pytest.raises(DataError, match=r"found 'dog'; expected one of cat, cow"):
        list(read(folder, DataSection(), "image-classification", ("cat", "cow")))


def test_a_batch_is_normalised(folder: Path) -> None:
    data = open_dataset(folder, RUN, None, preparation=PLAIN, fraction=0.0)
    batch = collate(data.train.take([0, 4]), preparation=PLAIN)
    assert batch.ids_BT is None
    assert batch.pixels_BCHW is not None
    assert batch.pixels_BCHW.shape == (2, 3, 4, 6)
    assert batch.labels.tolist() == [0, 1]
    assert data.train.pixels is not None
    wanted = (data.train.pixels[4].transpose(2, 0, 1) / 255 - 0.5) / 0.5
    np.testing.assert_allclose(batch.pixels_BCHW[1], wanted, atol=1e-6)


def test_a_damaged_image_is_named(folder: Path) -> None:
    (folder / "dog" / "1.png").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"1\.png: not a readable image"):
        open_dataset(folder, RUN, None, preparation=PLAIN)


def test_an_image_that_would_fill_the_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(DataError, match=r"0\.png: too large an image: .*35 pixels.*; make it smaller or leave it out"):
        open_dataset(folder, RUN, None, preparation=PLAIN)


def test_rows_that_name_images(tmp_path: Path, folder: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"image": "set/cat/0.png", "label": "cat"}\n{"image": "set/cat/9.png", "label": 0}\n')
    rows = read(file, DataSection(), "image-classification", ("cat", "dog"))
    row = next(rows)
    assert images.decode(row.image, row.file, row.line).shape == (5, 7, 3)
    row = next(rows)
    with pytest.raises(DataError, match=r"rows\.jsonl:2: there is no image .*9\.png"):
        images.decode(row.image, row.file, row.line)


def test_arrays(tmp_path: Path) -> None:
    file = tmp_path / "a.npz"
    pixels, labels = noise(3, 8, 9), np.array([1, 0, 1])
    np.savez(file, images=pixels, labels=labels)
    rows = list(records(file))
    assert [row.fields["label"] for row in rows] == [1, 0, 1]
    assert np.array_equal(rows[2].fields["image"][..., 0], pixels[2])
    data = open_dataset(file, RUN, None, preparation=PLAIN, fraction=0.0)
    assert data.train.pixels is not None
    assert data.train.pixels.shape == (3, 4, 6, 3), "grey is repeated for a model of three channels"


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"pictures": noise(2, 4, 4, 3)}, "found the arrays pictures; expected images and labels"),
        ({"images": noise(2, 4, 4, 3), "labels": np.zeros(3, int)}, r"labels have the shape \(3,\)"),
        ({"images": np.zeros((2, 4, 4, 3)), "labels": np.zeros(2, int)}, "images are float64"),
        ({"images": noise(2, 3, 4, 4), "labels": np.zeros(2, int)}, None),
        ({"images": noise(2, 5, 5, 5), "labels": np.zeros(2, int)}, "expected uint8 of shape"),
        ({"images": np.array([None]), "labels": np.zeros(1, int)}, "not a readable .npz file"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path: Path, arrays: dict[str, np.ndarray], words: str | None) -> None:  # type: ignore[type-arg]
    file = tmp_path / "a.npz"
    np.savez(file, **arrays)  # type: ignore[arg-type]
    if words is None:
        assert len(list(records(file))) == 2
        return
    with pytest.raises(DataError, match=words):
        list(records(file))


@pytest.mark.parametrize("content", [b"PK\x03\x04 nothing", b"", b"\x93NUMPY", b"\x80\x04."])
def test_no_npz_at_all(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"not a readable \.npz file"):
        list(records(tmp_path / "a.npz"))


def test_what_a_model_expects(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found no image size"):
        images.preparation(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"image_size": 30, "num_channels": 1}))
    assert images.preparation(tmp_path) == images.Preparation((30, 30), (0.5,), (0.5,))
    settings = {"size": {"height": 8, "width": 9}, "image_mean": [0.1, 0.2, 0.3], "image_std": [1, 2, 3]}
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    assert images.preparation(tmp_path) == images.Preparation((8, 9), (0.1, 0.2, 0.3), (1.0, 2.0, 3.0))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "not readable as JSON"),
        (b"\xff\xfe", "not readable as JSON"),
        (b"[1]", "found list; expected a JSON object"),
        (b'{"size": "large"}', "expected numbers"),
        (b'{"size": {"height": 8}}', "expected numbers"),
        (b'{"size": 8, "image_mean": 0.5}', "expected numbers"),
        (b'{"size": 8, "rescale_factor": null}', "expected numbers"),
    ],
)
def test_a_damaged_description_of_the_model(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "preprocessor_config.json").write_bytes(content)
    with pytest.raises(DataError, match=words) as error:
        images.preparation(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_without_pillow_only_files_are_refused(folder: Path) -> None:
    code = f"""
import sys
sys.modules["PIL"] = None
from fedsplit.data import images
from fedsplit.errors import MissingExtra
import numpy as np
assert images.resize(np.zeros((4, 4, 3), np.uint8), 2, 2).shape == (2, 2, 3)
try:
    images.decode({str(folder / "cat" / "0.png")!r}, "rows", 1)
except MissingExtra as error:
    assert "fedsplit[data]" in str(error)
    print("refused")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=240)
    assert done.stdout == "refused\n", done.stderr


def test_public_images(shared: Path) -> None:
    labels = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    rows = list(read(shared / "cifar10_small" / "test.npz", DataSection(), "image-classification", labels))
    assert len(rows) == 500
    assert all(sum(row.label == i for row in rows) == 50 for i in range(10))
