"""Step tensors that do not fit cost their sender only: it is refused with what was found, the others finish."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from fedsplit.wire import WireTensor
from fedsplit.wire.codecs import coded
from fedsplit.wire.ends import Tensors
from fedsplit.wire.messages import Backward, Forward, Message, Refuse
from tests.run.party import Party

CLIENTS = {"a": 'topology = "v"\ncut = [1, 6]', "b": 'topology = "u"\ncut = [1, 3]'}
ALONE: dict[str, object] = {
    "rounds__quorum": 1,
    "rounds__clients": 1,
    "train__rounds": 1,
    "evaluate__clients": False,
}
Change = Callable[[Tensors], dict[str, WireTensor]]


def labels(change: Callable[[np.ndarray], np.ndarray]) -> Change:
    return lambda tensors: {**tensors, "labels": WireTensor.of(change(tensors["labels"].numpy()))}


def longer(tensors: Tensors) -> dict[str, WireTensor]:
    g_ND = tensors["g"].numpy()
    return {**tensors, "g": WireTensor.of(np.concatenate([g_ND, g_ND[:1]]))}


WRONG: dict[str, tuple[str, type[Message], Change, str]] = {
    "no labels": ("a", Forward, lambda t: {"h": t["h"]}, "found no tensor 'labels'; topology v"),
    "float labels": ("a", Forward, labels(lambda x: x.astype(np.float32)), "'labels': found f32"),
    "a label too few": ("a", Forward, labels(lambda x: x[:-1].copy()), "'labels': found i64 of shape"),
    "a label out of range": ("a", Forward, labels(lambda x: x + 10**6), "'labels' holds 9"),
    "a negative label": ("a", Forward, labels(lambda x: x * 0 - 7), "'labels' holds -7, expected 0 to"),
    "hidden states in half": (
        "a",
        Forward,
        lambda t: {**t, "h": WireTensor.of(t["h"].numpy().astype(np.float16))},
        "'h': found f16",
    ),
    "another codec": ("b", Backward, lambda t: {"g": coded(t["g"], "int8")}, "found codec 'int8', expected 'raw'"),
    "a gradient of other tokens": ("b", Backward, longer, "as in its forward"),
}


@pytest.mark.parametrize(
    ("wrong", "adapters"),
    [*((wrong, "per-client") for wrong in WRONG), ("no labels", "shared-sequential")],
)
def test_wrong_tensors_are_refused_and_the_others_finish(
    party: Callable[..., Party], wrong: str, adapters: str
) -> None:
    name, kind, change, words = WRONG[wrong]
    other = "b" if name == "a" else "a"

    def tamper(message: Message, tensors: Tensors) -> tuple[Message, Tensors]:
        hit = isinstance(message, kind) and getattr(message, "train", True)
        return message, change(tensors) if hit else tensors

    run = party({name: CLIENTS[name], other: CLIENTS[other]}, start=False, server__adapters=adapters, **ALONE)
    run.tamper = {name: tamper}
    run.start()
    run.world.tolerated = {name}
    run.finish()
    [refused] = [packet.message for packet in run.ends[name].received if isinstance(packet.message, Refuse)]
    assert (refused.code, words in refused.reason) == ("content", True), "once: it would be wrong again"
    assert run.actors["server"].error is None
    assert run.actors[other].error is None
    assert run.keeper.state.round == 1
