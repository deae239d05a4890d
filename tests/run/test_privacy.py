"""What leaves a device, and what a server says of others: read from the schemas and from the bytes that were sent."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import pytest

from fedsplit.wire.frames import Packet, encode
from fedsplit.wire.messages import AnyMessage, DataSummary, Exchange, Forward, Message, Update, Welcome, kind_of
from fedsplit.wire.moves import SENDER, Role
from tests.run.party import Party

Make = Callable[..., Party]
CLASSES: dict[str, object] = {"model__task": "classification", "model__labels": ["short", "long"]}
PLACES = {"u": 'topology = "u"\ncut = [1, 3]', "w": 'topology = "w"', "v": 'topology = "v"\ncut = [2, 6]'}

SAID_BY_CLIENTS = {
    "probe": {"number", "invite", "back"},
    "hello": {"invite", "software", "base", "topology", "backend", "profile", "data", "tag"},
    "accept": {"base", "data", "keeps"},
    "fetch": {"asset", "offset", "size"},
    "alive": set(),
    "bye": {"reason", "back_s"},
    "update": {"round", "era", "base_version", "examples", "steps", "cost"},
    "report": {"round", "phase", "metrics", "examples"},
    "forward": {"lengths", "starts", "width", "label_tokens", "micros", "train"},
    "backward": set(),
    "prepare": {"squares", "finite", "examples"},
}
"""Every field that a device can fill in. A new one is a new way out: add it here after asking what it tells."""


def test_a_device_has_no_field_for_its_data() -> None:
    for kind in get_args(AnyMessage):
        if SENDER[kind_of(kind)] is Role.SERVER:
            continue
        base = Exchange if issubclass(kind, Exchange) else Message
        own = set(kind.__struct_fields__) - set(base.__struct_fields__)
        assert own == SAID_BY_CLIENTS[kind_of(kind)], kind
    assert set(DataSummary.__struct_fields__) == {"train_examples", "eval_examples", "tokens_mean", "tokens_max"}


@pytest.mark.parametrize("task", ["causal-lm", "classification"])
@pytest.mark.parametrize("place", PLACES)
def test_labels_travel_in_v_only_and_token_ids_never(party: Make, place: str, task: str) -> None:
    run = party({"a": PLACES[place]}, evaluate__every=1, **(CLASSES if task == "classification" else {}))
    sent = run.ends["a"].sent
    names = {name for packet in sent if isinstance(packet.message, Exchange) for name in packet.tensors}
    assert names == {"u": {"h", "g"}, "w": {"h", "g"}, "v": {"h", "labels"}}[place]
    for packet in sent:
        for name, tensor in packet.tensors.items():
            assert tensor.dtype == "f32" or (place == "v" and name == "labels"), (packet.message, name)
    looks = [p for p in sent if isinstance(p.message, Forward) and not p.message.train]
    assert looks
    assert any("labels" in look.tensors for look in looks) == (place == "v")


def test_no_word_of_a_row_is_in_what_was_sent(party: Make) -> None:
    secret = "Zanzibar"
    rows: list[dict[str, object]] = [{"text": f"{secret} keeps number {i} to itself, whoever asks"} for i in range(40)]
    run = party({"a": PLACES["u"], "b": PLACES["v"]}, data={"a": rows, "b": rows})
    for end in run.ends.values():
        assert not any(secret.encode() in as_bytes(packet) for packet in end.sent)


def test_what_the_server_tells_of_others(party: Make) -> None:
    """A client learns its own section, no folder of the operator, and nothing of other clients but sums."""
    run = party({"a": PLACES["u"], "b": PLACES["w"]})
    [welcome] = [p.message for p in run.ends["a"].received if isinstance(p.message, Welcome)]
    for word in (str(run.folder).encode(), b'"b"', b".jsonl"):
        assert word not in welcome.run_file
    others = {name for p in run.ends["a"].received for name in p.tensors if name.startswith(("1/", "2/"))}
    assert not others, "factors of layers that the server holds"


def test_a_device_sends_only_factors_of_layers_it_holds(party: Make) -> None:
    run = party({"a": PLACES["u"]})
    layers = {name.split("/")[0] for p in run.ends["a"].sent if isinstance(p.message, Update) for name in p.tensors}
    assert layers == {"0", "3", "4", "5"}


def as_bytes(packet: Packet) -> bytes:
    return b"".join(bytes(frame) for frame in encode(packet.message, packet.tensors))
