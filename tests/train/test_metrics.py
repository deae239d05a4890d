"""Metrics do not depend on batches; many clients' metrics combine to what the union of their rows would give."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedsplit.errors import ConfigError, DataError
from fedsplit.exchange import metrics
from fedsplit.exchange.selection import DEFAULT, HIGHER_IS_BETTER, Selection, better, metric_of
from fedsplit.seeds import generator

stats = pytest.importorskip("scipy.stats")

ROWS, CLASSES = 101, 7


def rows() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    rng = generator("metrics")
    logits = rng.standard_normal((ROWS, CLASSES), np.float32)
    labels = np.where(rng.random(ROWS) < 0.6, logits.argmax(1), rng.integers(0, CLASSES - 1, ROWS))
    return logits, labels


def cuts(points: list[int]) -> list[slice]:
    edges = [0, *sorted(points), ROWS]
    return [slice(a, b) for a, b in itertools.pairwise(edges)]


def naive_macro_f1(guesses: NDArray[Any], labels: NDArray[Any]) -> float:
    scores = []
    for c in sorted(set(guesses.tolist()) | set(labels.tolist())):
        hit = int(((guesses == c) & (labels == c)).sum())
        precision = hit / max(1, int((guesses == c).sum()))
        recall = hit / max(1, int((labels == c).sum()))
        scores.append(2 * precision * recall / (precision + recall) if hit else 0.0)
    return sum(scores) / len(scores)


def test_classification_against_the_definition() -> None:
    logits, labels = rows()
    meter = metrics.meter("classification", CLASSES)
    assert isinstance(meter, metrics.Classification)
    meter.add(logits, labels, 12.5)
    found = meter.result()
    assert found["accuracy"] == pytest.approx((logits.argmax(1) == labels).mean())
    assert found["macro_f1"] == pytest.approx(naive_macro_f1(logits.argmax(1), labels))
    assert 0.3 < found["macro_f1"] < 0.9
    assert found["loss"] == 12.5 / ROWS


def test_macro_f1_by_hand() -> None:
    """Labels 0 0 1 2, guesses 0 1 1 1: F1 of 0 is 2/3, of 1 is 1/2, of 2 is 0; class 3 never occurs."""
    meter = metrics.Classification(4)
    meter.add(np.eye(4)[[0, 1, 1, 1]], [0, 0, 1, 2])
    assert meter.result() == {"accuracy": 0.5, "macro_f1": pytest.approx((2 / 3 + 1 / 2) / 3)}


@settings(max_examples=40, derandomize=True, deadline=None)
@given(st.lists(st.integers(0, ROWS), max_size=12), st.randoms(use_true_random=False))
def test_batches_do_not_matter(points: list[int], random: Any) -> None:
    logits, labels = rows()
    losses = np.exp(generator("losses").standard_normal(ROWS) * 9)
    whole: list[Any] = [metrics.Classification(CLASSES), metrics.LanguageModel(), metrics.Regression()]
    parts: list[Any] = [metrics.Classification(CLASSES), metrics.LanguageModel(), metrics.Regression()]

    def add(meters: list[Any], batch: slice) -> None:
        for row in range(ROWS)[batch]:
            meters[0].add(logits[row : row + 1], labels[row : row + 1], losses[row])
            meters[1].add(losses[row], 3, examples=1, hits=int(labels[row]))
        meters[2].add(logits[batch, 0], logits[batch, 1])

    add(whole, slice(None))
    batches = cuts(points)
    random.shuffle(batches)
    for batch in batches:
        add(parts, batch)
    assert [meter.result() for meter in parts] == [meter.result() for meter in whole]
    assert [meter.examples for meter in parts] == [ROWS] * 3


def test_regression_against_scipy() -> None:
    rng = generator("regression")
    x = rng.standard_normal(ROWS).astype(np.float32)
    y = (0.7 * x + rng.standard_normal(ROWS)).astype(np.float32) + np.float32(1e4)
    meter = metrics.meter("regression")
    assert isinstance(meter, metrics.Regression)
    meter.add(x, y)
    found = meter.result()
    assert found["pearson"] == pytest.approx(stats.pearsonr(x.astype(float), y.astype(float)).statistic, rel=1e-9)
    assert found["mse"] == pytest.approx(np.square(x.astype(float) - y).mean(), rel=1e-12)


@pytest.mark.parametrize(("x", "y"), [([1, 1], [1, 2]), ([], []), ([1], [2]), ([1, math.nan], [1, 2])])
def test_no_correlation(x: list[float], y: list[float]) -> None:
    meter = metrics.Regression()
    meter.add(x, y)
    assert math.isnan(meter.result()["pearson"])


def test_language_model() -> None:
    meter = metrics.meter("causal-lm")
    assert isinstance(meter, metrics.LanguageModel)
    meter.add(30.0, 10, examples=2)
    meter.add(10.0, 30, examples=1)
    assert meter.result() == {"loss": 1.0, "perplexity": math.e, "tokens": 40.0}
    meter.add(1e6, 1, examples=1)
    assert meter.result()["perplexity"] == math.inf


def test_nothing_seen_is_nan() -> None:
    for meter in (metrics.Classification(3), metrics.LanguageModel(), metrics.Regression()):
        result = meter.result()
        assert all(math.isnan(result[name]) for name in result if name != "tokens")


def test_nan_shows() -> None:
    meter = metrics.LanguageModel()
    meter.add(math.nan, 3, examples=1)
    meter.add(1.0, 3, examples=1)
    assert math.isnan(meter.result()["loss"])


def test_label_out_of_range() -> None:
    with pytest.raises(DataError, match="found labels 0 to 3, expected 0 to 2"):
        metrics.Classification(3).add(np.zeros((2, 3)), [0, 3])


@settings(derandomize=True)
@given(st.lists(st.floats(-1e300, 1e300), max_size=40))
def test_exact_sum(values: list[float]) -> None:
    total = metrics.ExactSum()
    for value in values:
        total.add([value])
    try:
        expected = math.fsum(values)
    except OverflowError:
        return
    assert total.value() == expected


# ---- many clients --------------------------------------------------------------------------------------------------


def test_global_equals_the_union_of_rows() -> None:
    logits, labels = rows()
    union, reports = metrics.Classification(CLASSES), {}
    for index, batch in enumerate(cuts([10, 70])):
        meter = metrics.Classification(CLASSES)
        for each in (meter, union):
            each.add(logits[batch], labels[batch], 1.5 * (batch.stop - batch.start))
        reports[f"c{index}"] = (meter.result(), meter.examples)
    combined = metrics.combine(reports)
    assert combined.examples == ROWS
    assert combined.everyone["accuracy"] == pytest.approx(union.result()["accuracy"], rel=1e-14)
    assert combined.everyone["loss"] == pytest.approx(1.5)
    accuracies = {client: report["accuracy"] for client, (report, _) in reports.items()}
    assert combined.mean["accuracy"] == pytest.approx(sum(accuracies.values()) / 3)
    assert combined.worst["accuracy"] == min(accuracies.values())
    assert combined.worst_client["accuracy"] == min(accuracies, key=lambda c: accuracies[c])


def test_perplexity_is_weighted_by_tokens_in_the_exponent() -> None:
    long, short, union = metrics.LanguageModel(), metrics.LanguageModel(), metrics.LanguageModel()
    for meter in (long, union):
        meter.add(200.0, 100, examples=1)
    for meter in (short, union):
        meter.add(40.0, 10, examples=9)
    combined = metrics.combine({"long": (long.result(), 1), "short": (short.result(), 9)})
    assert combined.everyone["perplexity"] == pytest.approx(union.result()["perplexity"], rel=1e-12)
    assert combined.everyone["loss"] == pytest.approx(240 / 110)
    assert combined.mean["loss"] == 3.0
    assert combined.worst_client["perplexity"] == "short"
    assert combined.flat()["worst_client_loss"] == 4.0


def test_order_of_clients_does_not_matter() -> None:
    reports = {f"c{i}": ({"accuracy": 0.1 * i, "loss": 1 / (i + 1)}, i) for i in range(9)}
    assert metrics.combine(reports) == metrics.combine(dict(reversed(reports.items())))


def test_clients_without_rows_or_without_a_metric() -> None:
    assert metrics.combine({}).flat() == {}
    combined = metrics.combine({"a": ({"accuracy": 0.5}, 10), "b": ({"accuracy": 0.0}, 0), "c": ({"loss": 2.0}, 5)})
    assert combined.everyone == {"accuracy": 0.5, "loss": 2.0}
    assert combined.worst_client == {"accuracy": "a", "loss": "c"}


def test_nan_is_the_worst() -> None:
    combined = metrics.combine({"a": ({"loss": 1.0}, 1), "b": ({"loss": math.nan}, 1), "c": ({"loss": 9.0}, 1)})
    assert combined.worst_client["loss"] == "b"
    assert math.isnan(combined.everyone["loss"])


# ---- the best checkpoint -------------------------------------------------------------------------------------------


def test_every_metric_has_a_direction() -> None:
    meters: list[Any] = [metrics.Classification(2), metrics.LanguageModel(), metrics.Regression()]
    meters[0].add([[1.0, 0.0]], [0], 1.0)
    meters[1].add(1.0, 1, examples=1, hits=1)
    computed = {name for meter in meters for name in meter.result()} - {"tokens"}
    assert computed == set(HIGHER_IS_BETTER)
    assert set(DEFAULT.values()) <= computed


@pytest.mark.parametrize(
    ("metric", "values", "best"),
    [
        ("accuracy", [0.1, 0.5, 0.5, 0.4], 1),
        ("perplexity", [9.0, 3.0, 3.0, 4.0], 1),
        ("loss", [math.nan, 2.0, math.nan], 1),
        ("loss", [math.inf, 2.0], 1),
        ("accuracy", [0.2], 0),
        ("accuracy", [math.nan], None),
    ],
)
def test_best(metric: str, values: list[float], best: int | None) -> None:
    selection = Selection(metric=metric)
    for round, value in enumerate(values):
        selection = selection.seen(round, value)
    assert selection.best_round == best


def test_patience() -> None:
    selection = Selection(metric="loss")
    stopped = []
    for round, value in enumerate([3.0, 2.0, 2.5, 2.0, 1.9, 2.0, 2.0, 2.0]):
        selection = selection.seen(round, value)
        stopped.append(selection.stop(3))
    assert stopped == [False] * 7 + [True]
    assert (selection.best_round, selection.best) == (4, 1.9)
    assert not selection.stop(0)


def test_metric_names() -> None:
    assert metric_of("causal-lm") == "perplexity"
    assert metric_of("classification", "macro_f1") == "macro_f1"
    with pytest.raises(ConfigError, match=r"evaluate.metric: found 'acuracy', expected one of accuracy, macro_f1"):
        metric_of("classification", "acuracy")
    assert not better("loss", 1.0, 1.0)
