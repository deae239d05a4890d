"""What a comparison refuses, what it makes of flags, and its arithmetic."""

from __future__ import annotations

import math
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fedsplit.cli.compare_numbers import pairs, spread, summaries, t_975
from fedsplit.cli.compare_record import Comparison, Point, Run, Variant
from fedsplit.cli.compare_variants import candidates, check_comparable, methods_of, metric_for, seeds_of
from fedsplit.cli.main import run as command
from fedsplit.errors import ConfigError

RUN = """
[model]
path = "pydoc-llama"
task = "{task}"
{labels}
[data]
{column}
[evaluate]
metric = "{metric}"
[[clients]]
name = "a"
data = "{data}"
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def make(name: str, rows: str = "one\n", **values: str) -> Path:
        data = tmp_path / f"{name}.txt"
        data.write_text(rows)
        settings = {"task": "causal-lm", "labels": "", "column": "", "metric": "", "data": data.name} | values
        path = tmp_path / f"{name}.toml"
        path.write_text(RUN.format(**settings))
        return path

    return make


def refused(*files: Path, test: str = "") -> str:
    with pytest.raises(ConfigError) as error:
        check_comparable(candidates(files, [], [], []), test)
    return str(error.value)


def test_run_files_that_measure_different_things_are_refused(write: Callable[..., Path]) -> None:
    first = write("first")
    labels = 'labels = ["x", "y"]'
    said = refused(first, write("classes", task="classification", labels=labels))
    assert "model.task: found 'causal-lm' in first, 'classification' in classes" in said
    assert "model.labels: found nothing in first" in said
    assert "data.text: found nothing in first, 'body' in other" in refused(
        first, write("other", column='text = "body"')
    )
    said = refused(first, write("longer", labels="max_length = 99"))
    assert "model.max_length: found 128 in first, 99 in longer" in said


def test_other_rows_need_a_common_test_file(write: Callable[..., Path]) -> None:
    first, same, other = write("first"), write("same"), write("other", rows="two\n")
    check_comparable(candidates([first, same], [], [], []), "")
    assert "name one file for all with --test" in refused(first, other)
    check_comparable(candidates([first, other], [], [], []), "test.jsonl")


def test_somebody_must_measure(write: Callable[..., Path]) -> None:
    silent = write("silent", column="eval_fraction = 0.0")
    assert "nobody who measures in silent" in refused(silent)
    check_comparable(candidates([silent], [], [], []), "test.jsonl")


def test_one_metric_is_compared(write: Callable[..., Path]) -> None:
    some = candidates([write("first"), write("second", metric="loss")], [], [], [])
    with pytest.raises(ConfigError, match="'perplexity' in first, 'loss' in second"):
        metric_for(some, "")
    assert metric_for(some, "loss") == "loss"
    assert metric_for(some[:1], "") == "perplexity"
    with pytest.raises(ConfigError, match="found 'bleu', expected one of accuracy"):
        metric_for(some, "bleu")
    for other in ("accuracy", "token_accuracy"):
        with pytest.raises(
            ConfigError, match=f"metric: found '{other}', expected one of perplexity, loss for causal-lm"
        ):
            metric_for(some, other)


@pytest.mark.parametrize("flags", [["--metric", "accuracy"], ["--target", "accuracy=0.8"]])
def test_a_metric_of_another_task_is_refused_before_the_first_run(
    write: Callable[..., Path], tmp_path: Path, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        command(["compare", str(write("first")), "--no-plot", "--out", str(tmp_path / "out"), *flags])
    assert end.value.code == 2
    assert "expected one of perplexity, loss for causal-lm" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_methods_options_and_grids_make_variants(write: Callable[..., Path]) -> None:
    file = write("first")
    some = candidates(
        [file], ["fedavg", "flasc"], ["flasc.up=0.5", "fedavg.weights=uniform"], ["lora.rank=2,4", "train.lr=0.1"]
    )
    assert [one.variant.group for one in some] == ["fedavg", "fedavg", "flasc", "flasc"]
    assert some[3].variant.name == "flasc rank=4 learning_rate=0.1"
    assert (some[3].run.lora.rank, some[3].run.train.learning_rate) == (4, 0.1)
    assert some[3].run.method.options == {"up": 0.5}
    assert some[0].run.method.options == {"weights": "uniform"}
    grid = candidates([file], ["flasc"], [], ["method.up=0.25,0.5"])
    assert [one.run.method.options["up"] for one in grid] == [0.25, 0.5]


@pytest.mark.parametrize(
    ("methods", "options", "grid", "said"),
    [
        (["fedavgg"], [], [], "fedavg"),
        (["fedavg"], ["flora.x=1"], [], "its method is not compared"),
        (["fedavg", "fedavg"], [], [], "different names"),
        ([], [], ["lr=1"], "SECTION.KEY=VALUE,VALUE"),
        ([], [], ["clients.data=1,2"], "SECTION.KEY=VALUE,VALUE"),
        ([], [], ["train.speed=1"], "train.speed: found an unknown key"),
        ([], [], ["train.lr=-1"], "train.learning_rate"),
        ([], [], ["lora.rank=1,2", "lora.rank=3"], "every key once"),
        ([], [], ["lora.rank=2,2"], "every value once"),
    ],
)
def test_wrong_flags_are_named(
    write: Callable[..., Path], methods: list[str], options: list[str], grid: list[str], said: str
) -> None:
    with pytest.raises(ConfigError) as error:
        candidates([write("first")], methods, options, grid)
    assert said in str(error.value)


def test_seeds() -> None:
    assert seeds_of("3") == (0, 1, 2)
    assert seeds_of("1,5") == (1, 5)
    for wrong in ("", "0", "x", "-1", "0,0"):
        with pytest.raises(ConfigError, match="--seeds"):
            seeds_of(wrong)


@pytest.mark.parametrize("text", ["", ",", "flora, flora"])
def test_no_method_and_one_twice_are_refused(text: str) -> None:
    assert (methods_of("flora, fedavg"), methods_of(None)) == (["flora", "fedavg"], [])
    with pytest.raises(ConfigError, match="--methods"):
        methods_of(text)


def test_a_run_file_is_named_once(write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    file = write("first")
    monkeypatch.chdir(file.parent)
    with pytest.raises(ConfigError, match=r"RUNS: found .*first\.toml 2 times, expected each once"):
        candidates([file, Path("first.toml")], [], [], [])


def test_what_is_wrong_in_all_runs_is_said_once(write: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError) as error:
        candidates([write("first")], ["fedavg", "flora"], [], ["train.learningrate=1,2", "lora.rank=0,2"])
    assert sorted(problem.path.rpartition(" ")[2] for problem in error.value.problems) == [
        "lora.rank",
        "train.learningrate",
    ]


def test_without_matplotlib_it_says_how_to_install_it(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SystemExit) as end:
        command(["compare", str(write("first"))])
    assert end.value.code == 8
    said = capsys.readouterr().err
    assert "fedsplit[plot]" in said
    assert "--no-plot" in said


@pytest.mark.skipif(os.name == "nt", reason="Windows ends a process without asking")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_one_says_what_is_kept(
    write: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
) -> None:
    monkeypatch.setattr("fedsplit.cli.compare.run_processes", lambda *_, **__: signal.raise_signal(number))
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as end:
        command(["compare", str(write("first")), "--seeds", "2", "--no-plot", "--out", str(tmp_path / "out")])
    assert end.value.code == 130
    said = " ".join(capsys.readouterr().err.split())
    assert "0 of 2 runs are finished and kept" in said
    assert "the same command goes on" in said
    assert signal.getsignal(signal.SIGTERM) == before


def test_differences_are_taken_within_a_seed() -> None:
    values = {"x": {0: 10.0, 1: 20.0, 2: 31.0}, "y": {0: 9.0, 1: 18.0, 2: 28.0, 3: 99.0}}
    runs = [one(name, seed, value) for name, some in values.items() for seed, value in some.items()]
    found = Comparison(
        command="", metric="loss", measured_on="rows", target=20.0, seeds=(0, 1, 2, 3), runs=tuple(runs),
        variants=tuple(Variant(name=name, source="", method="", group=name) for name in values),
    )  # fmt: skip
    [pair] = pairs(found)
    assert (pair.n, pair.mean) == (3, 2.0)
    half = 4.302653 / math.sqrt(3)  # t for two degrees of freedom; the deviation of 1, 2, 3 is 1
    assert (pair.low, pair.high) == pytest.approx((2.0 - half, 2.0 + half))
    x, y = summaries(found)
    assert (x.reached_by, y.reached_by) == (2, 2)
    assert y.final is not None
    assert y.final.n == 4


def one(name: str, seed: int, value: float) -> Run:
    """A run that ends at ``value``."""
    points = [
        Point(round=r, metrics={"loss": v}, up_bytes=r, down_bytes=r, seconds=r) for r, v in ((0, 50.0), (1, value))
    ]
    return Run(variant=name, seed=seed, digest=f"{name}{seed}", points=tuple(points))


def test_best_reached_and_final_of_a_run() -> None:
    points = [
        Point(round=r, metrics={"loss": v}, up_bytes=0, down_bytes=0, seconds=0)
        for r, v in enumerate((1.0, 5.0, 3.0, None, 4.0))
    ]
    run = Run(variant="x", seed=0, points=tuple(points))
    assert (run.best("loss"), run.final("loss")) == (3.0, 4.0)
    assert run.reached("loss", 3.0) == 0
    assert run.reached("loss", 0.5) is None
    assert run.best("accuracy") is None
    assert spread([None, math.nan]) is None


def test_quantiles_of_student() -> None:
    stats = pytest.importorskip("scipy.stats", reason="pip install 'fedsplit[server]'")
    for freedom in (1, 2, 3, 7, 30, 31, 60, 500):
        assert t_975(freedom) == pytest.approx(float(stats.t.ppf(0.975, freedom)), abs=2e-4)
