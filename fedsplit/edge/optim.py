"""SGD, momentum and AdamW over NumPy arrays, operation by operation as torch.optim does them for one tensor at a time.

Sources: ``_single_tensor_sgd`` and ``_single_tensor_adam`` of ``torch/optim/{sgd,adam}.py``. Fused multiply-adds may
make the last bit of an element differ from torch's; ``tests/edge/test_optim.py`` bounds the drift.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from fedsplit.config.run import TrainSection

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
"""torch's defaults, which every client of a run has."""

Floats = NDArray[np.float32]


class Stepper:
    """Steps ``params``, float32 arrays by name, in place; ``grads`` has what was added up since the last step."""

    def __init__(self, train: TrainSection, params: Mapping[str, Floats]) -> None:
        self.train, self.params = train, dict(sorted(params.items()))
        self.grads: dict[str, Floats] = {}
        self._first: dict[str, Floats] = {}
        self._second: dict[str, Floats] = {}
        self._steps: dict[str, int] = {}

    def add(self, name: str, grad: Floats) -> None:
        """Add to the gradient of one tensor: micro-batches sum up."""
        if name in self.grads:
            self.grads[name] += grad
        else:
            self.grads[name] = np.array(grad, np.float32)

    def scale(self, factor: float) -> None:
        """Multiply every gradient."""
        for grad in self.grads.values():
            grad *= np.float32(factor)

    def squares(self) -> tuple[float, ...]:
        """Squared gradient norm of each tensor in name order, in float64; 0 where there is no gradient."""
        return tuple(
            float(np.square(self.grads[name].astype(np.float64)).sum()) if name in self.grads else 0.0
            for name in self.params
        )

    def step(self, clip: float = 1.0, rate: float = 1.0) -> None:
        """One update with gradients times ``clip`` and the learning rate times ``rate``; clears the gradients."""
        if clip != 1.0:
            self.scale(clip)
        lr = self.train.learning_rate * rate
        for name, grad in self.grads.items():
            if self.train.optimizer == "sgd":
                self._sgd(name, grad, lr)
            else:
                self._adamw(name, grad, lr)
        self.drop()

    def drop(self) -> None:
        """Forget the gradients."""
        self.grads = {}

    def _sgd(self, name: str, grad: Floats, lr: float) -> None:
        param, momentum = self.params[name], self.train.momentum
        if self.train.weight_decay:
            grad = grad + np.float32(self.train.weight_decay) * param
        if momentum:
            before = self._first.get(name)
            grad = self._first[name] = np.array(grad) if before is None else np.float32(momentum) * before + grad
        param -= np.float32(lr) * grad

    def _adamw(self, name: str, grad: Floats, lr: float) -> None:
        param = self.params[name]
        step = self._steps[name] = self._steps.get(name, 0) + 1
        first = self._first.setdefault(name, np.zeros_like(param))
        second = self._second.setdefault(name, np.zeros_like(param))
        param *= np.float32(1 - lr * self.train.weight_decay)
        first += np.float32(1 - BETA1) * (grad - first)
        second *= np.float32(BETA2)
        second += np.float32(1 - BETA2) * (grad * grad)
        root = np.float32(math.sqrt(1 - BETA2**step))
        param += np.float32(-lr / (1 - BETA1**step)) * (first / (np.sqrt(second) / root + np.float32(EPSILON)))
