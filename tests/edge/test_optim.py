"""NumPy's optimisers walk the path that torch's walk."""

from __future__ import annotations

import numpy as np
import pytest

from fedsplit.config.run import TrainSection
from fedsplit.edge.optim import Stepper
from fedsplit.seeds import generator

torch = pytest.importorskip("torch")


@pytest.mark.parametrize(
    "train",
    [
        TrainSection(optimizer="sgd", learning_rate=0.1),
        TrainSection(optimizer="sgd", learning_rate=0.05, momentum=0.9, weight_decay=0.01),
        TrainSection(optimizer="adamw", learning_rate=3e-3),
        TrainSection(optimizer="adamw", learning_rate=1e-2, weight_decay=0.1),
    ],
    ids=["sgd", "momentum", "adamw", "decay"],
)
def test_a_hundred_steps_end_where_torch_ends(train: TrainSection) -> None:
    from fedsplit.train.optim import make, squares

    source = generator(0, "optim")
    start = {name: source.standard_normal(shape).astype(np.float32) for name, shape in (("b", (5, 3)), ("a", (3, 7)))}
    mine = {name: value.copy() for name, value in start.items()}
    theirs = {name: torch.from_numpy(value.copy()).requires_grad_() for name, value in start.items()}
    ours, reference = Stepper(train, mine), make(train, theirs)
    for step in range(100):
        for _ in range(2):  # two micro-batches
            for name, value in start.items():
                grad = (source.standard_normal(value.shape) * 10 ** source.uniform(-4, 1)).astype(np.float32)
                ours.add(name, grad)
                whole = torch.from_numpy(grad)
                theirs[name].grad = whole if theirs[name].grad is None else theirs[name].grad + whole
        assert ours.squares() == squares(theirs)
        clip, rate = (0.5, 0.9) if step % 3 else (1.0, 1.0)
        ours.step(clip, rate)
        reference.step(clip, rate)
    for name, value in theirs.items():
        assert np.abs(mine[name] - start[name]).max() > 0.01, "it moved"
        np.testing.assert_allclose(mine[name], value.detach().numpy(), rtol=2e-5, atol=2e-6)


def test_a_dropped_step_leaves_no_trace() -> None:
    param = np.ones((2, 2), np.float32)
    stepper = Stepper(TrainSection(), {"x": param})
    stepper.add("x", np.full((2, 2), np.nan, np.float32))
    stepper.drop()
    stepper.step()
    assert (param == 1).all()
    assert stepper.squares() == (0.0,)
