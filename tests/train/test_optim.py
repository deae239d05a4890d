"""A split optimiser learns what the unsplit one learns, bit for bit, whoever holds which tensor."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedsplit.config.run import TrainSection
from fedsplit.errors import DataError
from fedsplit.exchange.rate import clip_factor, learning_rate
from fedsplit.train import optim

SHAPES = {
    "layers.0.lora_A": (3, 17),
    "layers.0.lora_B": (13, 3),
    "layers.1.lora_A": (3, 17),
    "layers.1.lora_B": (13, 3),
    "head.weight": (5, 17),
    "head.bias": (5,),
    "scale": (),
}
SECTIONS = {
    "sgd": TrainSection(optimizer="sgd", learning_rate=0.1, clip=0.5),
    "momentum": TrainSection(optimizer="sgd", learning_rate=0.1, momentum=0.9, weight_decay=0.01, clip=0.5),
    "adamw": TrainSection(optimizer="adamw", learning_rate=0.01, clip=0.5),
    "adamw, decay": TrainSection(optimizer="adamw", learning_rate=0.01, weight_decay=0.1, clip=0.5, schedule="cosine"),
}
STEPS = 6


def fresh(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(3)
    return {n: torch.randn(s, generator=rng).to(dtype).requires_grad_() for n, s in SHAPES.items()}


def set_grads(params: dict[str, Tensor], step: int) -> None:
    rng = torch.Generator().manual_seed(100 + step)
    grads = {name: torch.randn(shape, generator=rng) for name, shape in SHAPES.items()}
    for name, param in params.items():
        param.grad = grads[name].to(param.dtype)


def train(section: TrainSection, parts: list[list[str]]) -> dict[str, Tensor]:
    """Each of ``parts`` is a process with its own optimiser; they share the squares and nothing else."""
    everything = fresh()
    held = [{name: everything[name] for name in part} for part in parts]
    steppers = [optim.make(section, params) for params in held]
    for step in range(STEPS):
        for params in held:
            set_grads(params, step)
        joint = itertools.chain.from_iterable(optim.squares(params) for params in held)
        clip = clip_factor(joint, section.clip)
        assert clip < 1.0
        rate = learning_rate(section, step, STEPS)
        for stepper in steppers:
            stepper.step(clip, rate)
    return everything


@st.composite
def partitions(draw: st.DrawFn) -> list[list[str]]:
    places = {name: draw(st.integers(0, 3)) for name in SHAPES}
    order = draw(st.permutations(list(SHAPES)))
    parts = [[name for name in order if places[name] == place] for place in range(4)]
    return [part for part in parts if part]


@pytest.mark.parametrize("section", SECTIONS.values(), ids=SECTIONS.keys())
def test_any_partition_equals_the_unsplit_run(section: TrainSection) -> None:
    whole = train(section, [list(SHAPES)])

    @settings(max_examples=25, deadline=None, derandomize=True)
    @given(partitions())
    def equal(parts: list[list[str]]) -> None:
        found = train(section, parts)
        assert all(torch.equal(found[name], whole[name]) for name in SHAPES)

    equal()
    assert not any(torch.equal(whole[name], start) for name, start in fresh().items())


@pytest.mark.parametrize("section", SECTIONS.values(), ids=SECTIONS.keys())
def test_close_to_plain_torch(section: TrainSection) -> None:
    params = fresh()
    values = list(params.values())
    rate, decay = section.learning_rate, section.weight_decay
    plain: torch.optim.Optimizer
    if section.optimizer == "sgd":
        plain = torch.optim.SGD(values, lr=rate, momentum=section.momentum, weight_decay=decay)
    else:
        plain = torch.optim.AdamW(values, lr=rate, weight_decay=decay)
    for step in range(STEPS):
        set_grads(params, step)
        torch.nn.utils.clip_grad_norm_(values, section.clip)
        plain.param_groups[0]["lr"] = rate * learning_rate(section, step, STEPS)
        plain.step()
    ours = train(section, [list(SHAPES)])
    for name, param in params.items():
        torch.testing.assert_close(ours[name], param, rtol=2e-6, atol=2e-7)


def test_without_clipping_it_is_torch_itself() -> None:
    section = TrainSection(optimizer="adamw", learning_rate=0.01)
    ours, plain = fresh(), fresh()
    stepper, reference = optim.make(section, ours), torch.optim.AdamW(plain.values(), lr=0.01, weight_decay=0.0)
    for step in range(STEPS):
        set_grads(ours, step)
        set_grads(plain, step)
        stepper.step()
        reference.step()
    assert all(torch.equal(ours[name], plain[name]) for name in SHAPES)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
def test_squares_do_not_depend_on_threads() -> None:
    grad = torch.randn(1201, 997, generator=torch.Generator().manual_seed(1))
    params = {"b": torch.zeros(2, requires_grad=True), "a": torch.zeros_like(grad, requires_grad=True)}
    params["a"].grad = grad
    found = set()
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        found.add(optim.squares(params))
    ((first, second),) = found
    assert second == 0.0, "no gradient counts as zero"
    assert first == pytest.approx(math.fsum(grad.double().square().flatten().tolist()), rel=1e-14)


def test_squares_do_not_depend_on_memory_layout() -> None:
    grad = torch.randn(31, 57, generator=torch.Generator().manual_seed(1))
    found = []
    for layout in (grad, grad.t().contiguous().t()):
        param = torch.zeros_like(grad, requires_grad=True)
        param.grad = layout
        found.append(optim.squares({"w": param}))
    assert found[0] == found[1]


def test_squares_are_in_sorted_order_and_do_not_overflow() -> None:
    params = {name: torch.zeros(1, requires_grad=True) for name in ("b", "c", "a")}
    for value, name in enumerate(sorted(params), start=1):
        params[name].grad = torch.full((1,), float(value))
    assert optim.squares(params) == (1.0, 4.0, 9.0)
    params["a"].grad = torch.full((1,), 3e38)
    assert optim.squares(params)[0] == pytest.approx(9e76, rel=1e-6)


@settings(derandomize=True)
@given(st.lists(st.floats(0, 1e30), max_size=30), st.randoms(use_true_random=False))
def test_the_factor_does_not_depend_on_order(values: list[float], random: object) -> None:
    shuffled = sorted(values)
    assert clip_factor(shuffled, 1.0) == clip_factor(reversed(shuffled), 1.0)
    factor = clip_factor(values, 1.0)
    norm = math.sqrt(math.fsum(values))
    assert 0 < factor <= 1.0
    assert factor * norm <= 1.0
    assert (factor == 1.0) == (norm <= 1.0 - 1e-6) or norm == pytest.approx(1.0, abs=2e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0, 1.7e308])
def test_a_norm_that_is_no_number_is_nan(bad: float) -> None:
    """A client can send anything; the sum of two 1.7e308 overflows."""
    assert math.isnan(clip_factor([1.0, bad, 1.7e308], 1.0))


def test_no_clipping() -> None:
    assert clip_factor([1e10], 0.0) == 1.0
    assert math.isnan(clip_factor([math.nan], 0.0))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_finite(bad: float) -> None:
    params = fresh()
    assert optim.finite(params), "no gradients at all"
    set_grads(params, 0)
    assert optim.finite(params)
    grad = params["head.weight"].grad
    assert grad is not None
    grad[2, 3] = bad
    assert not optim.finite(params)


def test_drop_forgets_the_step() -> None:
    params = fresh()
    stepper = optim.make(SECTIONS["momentum"], params)
    set_grads(params, 0)
    stepper.drop()
    stepper.step()
    assert all(torch.equal(param, start) for param, start in zip(params.values(), fresh().values(), strict=True))


@pytest.mark.parametrize("section", SECTIONS.values(), ids=SECTIONS.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_interrupted_equals_uninterrupted(section: TrainSection, dtype: torch.dtype) -> None:
    def steps(params: dict[str, Tensor], stepper: optim.Stepper, first: int, last: int) -> None:
        for step in range(first, last):
            set_grads(params, step)
            stepper.step(0.5)

    whole = fresh(dtype)
    steps(whole, optim.make(section, whole), 0, STEPS)
    early = fresh(dtype)
    stepper = optim.make(section, early)
    steps(early, stepper, 0, 2)
    arrays = stepper.arrays()
    assert all(isinstance(array, np.ndarray) for array in arrays.values())
    late = {name: param.detach().clone().requires_grad_() for name, param in early.items()}
    resumed = optim.make(section, late)
    resumed.load(arrays)
    steps(late, resumed, 2, STEPS)
    assert all(torch.equal(late[name], whole[name]) for name in SHAPES)
    steps(early, stepper, 2, STEPS)
    assert all(torch.equal(early[name], whole[name]) for name in SHAPES), "what was saved is a copy"


def test_state_of_another_plan_is_refused() -> None:
    stepper = optim.make(SECTIONS["adamw"], fresh())
    with pytest.raises(DataError, match=r"'layers.7.lora_A/exp_avg' .* expected no such tensor"):
        stepper.load({"layers.7.lora_A/exp_avg": np.zeros((3, 17), np.float32)})
    with pytest.raises(DataError, match=r"of shape \(4, 17\), expected \(3, 17\)"):
        stepper.load({"layers.0.lora_A/exp_avg": np.zeros((4, 17), np.float32)})


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.25, 0.5, 0.75, 1.0, 1.0, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),
        ("cosine", [0.25, 0.5, 0.75, 1.0, 1.0, 0.933013, 0.75, 0.5, 0.25, 0.066987]),
    ],
)
def test_learning_rate(schedule: str, expected: list[float]) -> None:
    section = TrainSection(schedule=schedule, warmup_steps=4)  # type: ignore[arg-type]
    found = [learning_rate(section, step, 10) for step in range(10)]
    assert found == pytest.approx(expected, abs=1e-6)
    assert learning_rate(section, 1000, 10) == pytest.approx(1.0 if schedule == "constant" else 0.0)


def test_warm_up_longer_than_the_run() -> None:
    section = TrainSection(schedule="linear", warmup_steps=20)
    assert [learning_rate(section, step, 4) for step in range(4)] == [0.05, 0.1, 0.15, 0.2]
