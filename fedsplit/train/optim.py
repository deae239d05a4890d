"""The optimiser of one process's share of the trainable tensors.

A model that is split over processes must learn what the unsplit one learns, bit for bit. So the update of a tensor
depends on nothing but that tensor (torch.optim, one tensor at a time), and the two numbers that depend on all tensors
are computed alike everywhere: the joint gradient norm from the exact sum of per-tensor squares, whichever process
holds which tensor, and the learning rate as a pure function of the step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsplit.config.run import TrainSection
from fedsplit.errors import DataError


class Stepper:
    """Steps ``params``, leaf tensors by name, in place. ``step`` or ``drop`` ends every optimiser step."""

    def __init__(self, train: TrainSection, params: Mapping[str, Tensor]) -> None:
        self.train, self.params = train, dict(sorted(params.items()))
        self._optimizer = _optimizer(train, list(self.params.values()))

    def step(self, clip: float = 1.0, rate: float = 1.0) -> None:
        """One update with gradients times ``clip`` and the learning rate times ``rate``; clears the gradients."""
        if clip != 1.0:
            for param in self.params.values():
                if param.grad is not None:
                    param.grad.mul_(clip)
        for group in self._optimizer.param_groups:
            group["lr"] = self.train.learning_rate * rate
        self._optimizer.step()
        self.drop()

    def drop(self) -> None:
        """Forget the gradients of an aborted step."""
        self._optimizer.zero_grad(set_to_none=True)

    def reset(self) -> None:
        """Forget momentum and step counts, as at the start of a run."""
        self._optimizer = _optimizer(self.train, list(self.params.values()))

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The optimiser's state as ``{"tensor name/slot": array}``; bfloat16 is widened to float32 (exactly)."""
        return {
            f"{name}/{slot}": _numpy(value)
            for name, param in self.params.items()
            for slot, value in sorted(self._optimizer.state.get(param, {}).items())
            if isinstance(value, Tensor)
        }

    def load(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take over what ``arrays`` returned; tensors it does not name start afresh.

        Raises DataError when it names a tensor this process does not hold, or one of another shape.
        """
        self.reset()
        for key, array in arrays.items():
            name, slot = key.rsplit("/", 1)
            param = self.params.get(name)
            if param is None or array.shape not in ((), tuple(param.shape)):
                found = f"optimiser state {key!r} of shape {array.shape}"
                expected = "no such tensor" if param is None else f"{tuple(param.shape)}"
                raise DataError(f"found {found}, expected {expected}; it is from another plan, start without it")
            self._optimizer.state[param][slot] = _slot(slot, array, param)


def make(train: TrainSection, params: Mapping[str, Tensor]) -> Stepper:
    """The optimiser that ``train`` asks for, over leaf tensors that require gradients."""
    return Stepper(train, params)


def squares(params: Mapping[str, Tensor]) -> tuple[float, ...]:
    """Squared gradient norm of each tensor, in the order of their sorted names; 0 where there is no gradient.

    Computed in float64. On a CPU the sum is NumPy's, whose order does not depend on the number of threads as
    torch's does: the split and the unsplit run may have different ones.
    """
    grads = [param.grad for _, param in sorted(params.items())]
    if all(grad is None or grad.device.type == "cpu" for grad in grads):
        return tuple(0.0 if grad is None else _square(grad) for grad in grads)
    # One transfer for all: every single one would wait for the device.
    device = next(grad.device for grad in grads if grad is not None)
    zero = torch.zeros((), dtype=torch.float64, device=device)
    sums = [zero if grad is None else grad.double().square().sum() for grad in grads]
    return tuple(torch.stack(sums).tolist())


def finite(params: Mapping[str, Tensor]) -> bool:
    """Whether every gradient is free of NaN and infinities: just then its square is a number in float64."""
    return all(map(math.isfinite, squares(params)))


def _optimizer(train: TrainSection, params: list[Tensor]) -> torch.optim.Optimizer:
    # foreach and fused kernels may round differently with the list they are given; one tensor at a time cannot.
    if train.optimizer == "sgd":
        return torch.optim.SGD(
            params,
            lr=train.learning_rate,
            momentum=train.momentum,
            weight_decay=train.weight_decay,
            foreach=False,
            fused=False,
        )
    return torch.optim.AdamW(
        params, lr=train.learning_rate, weight_decay=train.weight_decay, foreach=False, fused=False
    )


def _square(grad: Tensor) -> float:
    return float(np.square(grad.detach().double().contiguous().numpy()).sum())


def _numpy(value: Tensor) -> NDArray[Any]:
    value = value.detach().cpu()
    return (value.float() if value.dtype == torch.bfloat16 else value).numpy().copy()


def _slot(slot: str, array: NDArray[Any], param: Tensor) -> Tensor:
    """torch keeps step counts on the CPU in float32; the rest lives where, and as what, the parameter does."""
    value = torch.from_numpy(np.array(array))
    return value if slot == "step" else value.to(param.device, param.dtype)
