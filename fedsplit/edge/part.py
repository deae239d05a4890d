"""What a device without torch holds: graphs, factors, their optimiser; and the three moves of a training step.

    forward     rows → hidden states that leave (or the input of the tail, where nothing leaves)
    tail        hidden states that came back → loss, gradient that leaves
    backward    gradient that came back → gradients of the front's factors

Between ``forward`` and ``backward`` the input of every front layer is kept, no more: a layer is computed again on its
way back. Padding is on the right. Legend: B samples, T padded tokens, N valid tokens, D model width, R rank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsplit.config.run import RunFile
from fedsplit.data.batches import Batch
from fedsplit.data.examples import IGNORED
from fedsplit.edge import streamed
from fedsplit.edge.manifest import load
from fedsplit.edge.optim import Stepper
from fedsplit.edge.runner import Floats, Lookup, Runner
from fedsplit.errors import DataError
from fedsplit.lora.adapter import Adapter, Head, ModuleKey, Sides
from fedsplit.lora.first import draw
from fedsplit.lora.lowrank import LowRank
from fedsplit.lora.patch import Patch
from fedsplit.plan.edge import LOGITS_BYTES

A, B = ".lora_A.default.weight", ".lora_B.default.weight"
GRAD = "grad:"


class EdgePart:
    """Front and tail of a plan, from the folder of its graphs. ``trains``: layers whose factors learn; None: all."""

    def __init__(self, folder: Path, run: RunFile, *, trains: Sequence[int] | None = None, threads: int = 0) -> None:
        self.manifest = load(folder)
        self.run, self.task = run, run.model.task
        self._runner = Runner(folder, self.manifest, threads)
        self._trains = set(self.manifest.layers if trains is None else trains)
        self.front = self.manifest.layers[: self.manifest.front]
        self.last = self.manifest.layers[self.manifest.front :]
        self.tensors: dict[str, Floats] = {}
        self._stepper: Stepper | None = None
        self._learning: Sides = "AB"
        self._kept: dict[int, list[Floats]] = {}

    # ---- factors ----------------------------------------------------------------------------------------------------

    def load(self, adapter: Adapter, head: Head, trains: Sides = "AB", patch: Patch | None = None) -> None:
        """Start from these factors (of the layers held here) with a fresh optimiser. Those not in ``trains`` rest.

        Raises DataError where rounds have folded something into the base: the graphs hold its weights as they were.
        """
        if patch:
            raise DataError(
                "this method changes the base weights, which a device without torch cannot follow; use torch"
            )
        self._kept, self.tensors, self._learning = {}, {}, trains
        for layer, names in self.manifest.factors.items():
            for short, name in names.items():
                if short.endswith(A):
                    self._put(adapter, ModuleKey(layer, short.removesuffix(A)), name)
        for name in self.manifest.shapes:
            if name in head:
                self.tensors[name] = np.array(head[name], np.float32)
        for layer in self.manifest.factors.keys() - self._trains:
            for name in self.manifest.factors[layer].values():
                # A layer without factors: those that add nothing.
                self.tensors.setdefault(name, np.zeros(self.manifest.shapes[name], np.float32))
        if missing := sorted(self.manifest.shapes.keys() - self.tensors.keys()):
            raise DataError(f"the server sent no values for {missing[0]}, which this device's plan has")
        self._stepper = Stepper(self.run.train, {name: self.tensors[name] for name in self.trained})

    @property
    def trained(self) -> list[str]:
        """Names of the tensors that learn here."""
        mine = [names.values() for layer, names in self.manifest.factors.items() if layer in self._trains]
        factors = (name for names in mine for name in names if ("A" if name.endswith(A) else "B") in self._learning)
        return [*factors, *self.manifest.trained]

    def read(self) -> tuple[Adapter, Head]:
        """What was trained, as it is now, alpha/r absorbed."""
        adapter = {}
        for layer, names in self.manifest.factors.items():
            if layer not in self._trains:
                continue
            for short, name in names.items():
                if short.endswith(A):
                    a_RN, b_MR = self.tensors[name], self.tensors[name.removesuffix(A) + B]
                    scale = np.float32(self._scale(a_RN.shape[0]))
                    adapter[ModuleKey(layer, short.removesuffix(A))] = LowRank(b_MR * scale, np.array(a_RN))
        return adapter, {name: np.array(self.tensors[name]) for name in self.manifest.trained}

    def drawn(self) -> Adapter:
        """The first factors of the layers held here."""
        shapes, seed, found = self.manifest.shapes, self.run.run.seed, {}
        for layer, names in self.manifest.factors.items():
            for short, name in names.items():
                if short.endswith(A):
                    a_RN, b_MR = (draw(one, shapes[one], seed, 0.0) for one in (name, name.removesuffix(A) + B))
                    found[ModuleKey(layer, short.removesuffix(A))] = LowRank(b_MR, a_RN)
        return found

    def _put(self, adapter: Adapter, key: ModuleKey, name: str) -> None:
        if key not in adapter:
            return
        factors = adapter[key]
        a_RN, b_MR = np.array(factors.A_RN, np.float32), np.array(factors.B_MR, np.float32)
        for tensor, named in ((a_RN, name), (b_MR, name.removesuffix(A) + B)):
            if tensor.shape != self.manifest.shapes[named]:
                expected = self.manifest.shapes[named]
                raise DataError(f"{named}: found a factor of shape {tensor.shape}, this plan's graphs need {expected}")
            self.tensors[named] = tensor
        self.tensors[name.removesuffix(A) + B] /= np.float32(self._scale(factors.rank))

    def _scale(self, rank: int) -> float:
        lora = self.run.lora
        return lora.alpha / (math.sqrt(rank) if lora.rslora else rank)

    # ---- a step ------------------------------------------------------------------------------------------------------

    def forward(self, index: int, batch: Batch) -> Floats:
        """Through the front, (N, D); what ``backward`` needs is kept under ``index``."""
        mask_BT = mask_of(batch)
        if not self._reaches_front:
            return self.look(batch)
        inputs = self._through(self.front, [self._embedded(batch, mask_BT)], mask_BT)
        self._kept[index] = inputs[:-1]
        packed: Floats = inputs[-1][mask_BT.astype(bool)]
        return packed

    def tail(self, batch: Batch, h_ND: Floats, label_tokens: int) -> tuple[float, Floats]:
        """(share of the step's mean loss, gradient of ``h_ND``); gradients of the tail's own tensors are added up."""
        mask_BT = mask_of(batch)
        inputs = self._through(self.last, [unpacked(h_ND, mask_BT)], mask_BT)
        loss, g_BTD, grads = self._head(batch, inputs[-1], mask_BT, 1 / label_tokens)
        self._add(grads)
        g_BTD = self._back(self.last, inputs[:-1], g_BTD, mask_BT)
        return loss, g_BTD[mask_BT.astype(bool)]

    def backward(self, index: int, batch: Batch, g_ND: Floats) -> None:
        """Gradients of the front's factors, added up."""
        kept = self._kept.pop(index, None)
        if kept is not None:
            mask_BT = mask_of(batch)
            self._back(self.front, kept, unpacked(g_ND, mask_BT), mask_BT)

    def look(self, batch: Batch) -> Floats:
        """As ``forward``, nothing kept."""
        mask_BT = mask_of(batch)
        packed: Floats = self._after(self.front, self._embedded(batch, mask_BT), mask_BT)[mask_BT.astype(bool)]
        return packed

    def score(self, batch: Batch, h_ND: Floats) -> tuple[float, Floats | None]:
        """(loss summed over label tokens, logits (B, C); none of a language model)."""
        mask_BT = mask_of(batch)
        y_BTD = self._after(self.last, unpacked(h_ND, mask_BT), mask_BT)
        loss, _, _ = self._head(batch, y_BTD, mask_BT, 1.0)
        return loss, None if self.task == "causal-lm" else self._scores(y_BTD, mask_BT)

    def logits(self, batch: Batch, h_ND: Floats) -> Floats:
        """(B, C); of a language model (B, V) at each sample's last token."""
        mask_BT = mask_of(batch)
        y_BTD = self._after(self.last, unpacked(h_ND, mask_BT), mask_BT)
        if self.task == "causal-lm":
            y_BTD = y_BTD[np.arange(len(y_BTD)), mask_BT.sum(axis=1) - 1]
        return self._scores(y_BTD, mask_BT)

    def _scores(self, y: Floats, mask_BT: NDArray[np.int64]) -> Floats:
        if self._runner.head is not None:
            return streamed.logits(self._runner.run("finish", {"y": y, **self.tensors})["out"], self._runner.head)
        found: Floats = self._runner.run("scores", {"y": y, "mask": mask_BT, **self.tensors})["logits"]
        return found

    def squares(self) -> tuple[float, ...]:
        """Squared gradient norm of every tensor that learns, in name order."""
        return self._stepper.squares() if self._stepper is not None else ()

    @property
    def gradients(self) -> Mapping[str, Floats]:
        """What was added up since the last step, by tensor name."""
        return self._stepper.grads if self._stepper is not None else {}

    def scale(self, factor: float) -> None:
        """Multiply the gradients."""
        if self._stepper is not None:
            self._stepper.scale(factor)

    def step(self, clip: float, rate: float) -> None:
        if self._stepper is not None:
            self._stepper.step(clip, rate)
        self._kept = {}

    def drop(self) -> None:
        """Forget a step that was not committed."""
        if self._stepper is not None:
            self._stepper.drop()
        self._kept = {}

    # ---- layers ------------------------------------------------------------------------------------------------------

    @property
    def _reaches_front(self) -> bool:
        return any(layer in self._trains and self.manifest.factors[layer] for layer in self.front)

    def _embedded(self, batch: Batch, mask_BT: NDArray[np.int64]) -> Floats:
        """The input of the first layer."""
        given: dict[str, Any] = {"mask": mask_BT}
        if batch.pixels_BCHW is not None:
            given["e"] = batch.pixels_BCHW
        else:
            assert batch.ids_BT is not None
            given["e"] = self._runner.embeddings(batch.ids_BT)
            given["types"] = batch.types_BT if batch.types_BT is not None else np.zeros_like(batch.ids_BT)
        found: Floats = self._runner.run("embed", given)["h"]
        return found

    def _after(self, layers: Sequence[int], h_BTD: Floats, mask_BT: NDArray[np.int64]) -> Floats:
        """The output of the last layer; no other is kept."""
        for layer in layers:
            h_BTD = self._runner.run(f"layer.{layer}", {"h": h_BTD, "mask": mask_BT, **self._factors(layer)})["out"]
        return h_BTD

    def _through(self, layers: Sequence[int], inputs: list[Floats], mask_BT: NDArray[np.int64]) -> list[Floats]:
        """The input of every layer, and the output of the last."""
        for layer in layers:
            given = {"h": inputs[-1], "mask": mask_BT, **self._factors(layer)}
            inputs.append(self._runner.run(f"layer.{layer}", given)["out"])
        return inputs

    def _back(
        self, layers: Sequence[int], inputs: Sequence[Floats], g_BTD: Floats, mask_BT: NDArray[np.int64]
    ) -> Floats:
        """The gradient of the first layer's input. Below the lowest layer that learns in front nothing is computed."""
        lowest = min((layer for layer in layers if layer in self._trains), default=math.inf)
        for layer, h_BTD in zip(reversed(layers), reversed(inputs), strict=True):
            if layer < lowest and layers is self.front:
                break
            given = {"g": g_BTD, "h": h_BTD, "mask": mask_BT, **self._factors(layer)}
            found = self._runner.run(f"layer_grad.{layer}", given)
            g_BTD = found.pop(f"{GRAD}h")
            if layer in self._trains:
                names = self.manifest.factors[layer]
                self._add({names[name.removeprefix(GRAD)]: grad for name, grad in found.items()})
        return g_BTD

    def _factors(self, layer: int) -> dict[str, Floats]:
        return {short: self.tensors[name] for short, name in self.manifest.factors[layer].items()}

    def _add(self, grads: Mapping[str, Floats]) -> None:
        assert self._stepper is not None
        for name, grad in grads.items():
            if name in self._stepper.params:  # graphs give the gradients of both factors, also of one that rests
                self._stepper.add(name, grad)

    # ---- head --------------------------------------------------------------------------------------------------------

    def _head(
        self, batch: Batch, y_BTD: Floats, mask_BT: NDArray[np.int64], scale: float
    ) -> tuple[float, Floats, dict[str, Floats]]:
        """(loss, gradient of ``y_BTD``, gradients of the head's tensors that learn)."""
        if self.task == "causal-lm":
            return self._causal(batch, y_BTD, mask_BT, scale)
        labels = batch.labels if self.task != "regression" else batch.labels.astype(np.float32)
        given = {"y": y_BTD, "mask": mask_BT, "labels": labels, "scale": np.array(scale, np.float32), **self.tensors}
        found = self._runner.run("head", given)
        loss, g_BTD = float(found.pop("loss")), found.pop(f"{GRAD}y")
        return loss, g_BTD, {name.removeprefix(GRAD): grad for name, grad in found.items()}

    def _causal(
        self, batch: Batch, y_BTD: Floats, mask_BT: NDArray[np.int64], scale: float
    ) -> tuple[float, Floats, dict[str, Floats]]:
        """Label positions only, so many at a time that their logits fit into ``LOGITS_BYTES``."""
        shifted_BT = np.concatenate([batch.labels[:, 1:], np.full_like(batch.labels[:, :1], IGNORED)], axis=1)
        wanted = (shifted_BT != IGNORED) & mask_BT.astype(bool)
        y_ND, labels_N = y_BTD[wanted], shifted_BT[wanted]
        g_ND, loss = np.empty_like(y_ND), 0.0
        vocabulary = self.manifest.table.rows if self.manifest.table is not None else 1
        size = max(1, LOGITS_BYTES // (4 * vocabulary))
        if self._runner.head is not None and len(y_ND):
            loss, g_ND = self._streamed(self._runner.head, y_ND, labels_N, scale)
            y_ND = y_ND[:0]
        for start in range(0, len(y_ND), size):
            part = slice(start, start + size)
            given = {"y": y_ND[part], "labels": labels_N[part], "scale": np.array(scale, np.float32), **self.tensors}
            found = self._runner.run("head", given)
            loss += float(found["loss"])
            g_ND[part] = found[f"{GRAD}y"]
        g_BTD = np.zeros_like(y_BTD)
        g_BTD[wanted] = g_ND
        return loss, g_BTD, {}

    def _streamed(self, head: Lookup, y_ND: Floats, labels_N: NDArray[np.int64], scale: float) -> tuple[float, Floats]:
        """(loss, gradient of ``y_ND``) with a head that stays in its file."""
        finished = self._runner.run("finish", {"y": y_ND, **self.tensors})["out"]
        loss, g_ND = streamed.loss(finished, labels_N, scale, head)
        found: Floats = self._runner.run("finish_grad", {"g": g_ND, "y": y_ND, **self.tensors})[f"{GRAD}y"]
        return loss, found


def mask_of(batch: Batch) -> NDArray[np.int64]:
    """1 where a token is (B, T). Raises DataError for padding on the left: collate such rows on the right."""
    if any(batch.starts):
        raise DataError("found rows padded on the left, expected them on the right; exported graphs know no other")
    places = np.arange(batch.width)[None, :]
    return (places < np.array(batch.lengths)[:, None]).astype(np.int64)


def unpacked(h_ND: Floats, mask_BT: NDArray[np.int64]) -> Floats:
    """(N, D) to (B, T, D), zeros at padding. Raises DataError for another number of tokens."""
    if len(h_ND) != int(mask_BT.sum()):
        raise DataError(f"found hidden states of {len(h_ND)} tokens, expected {int(mask_BT.sum())}")
    h_BTD = np.zeros((*mask_BT.shape, h_ND.shape[-1]), np.float32)
    h_BTD[mask_BT.astype(bool)] = h_ND
    return h_BTD
