"""Predicting through the split: the parts this device holds here, the body at a server that keeps a run open."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsplit.data.batches import Batch
from fedsplit.devices.profile import DeviceProfile
from fedsplit.errors import LinkError
from fedsplit.events import Emit, silent
from fedsplit.exchange.coded import as_planned
from fedsplit.exchange.part import Part
from fedsplit.exchange.predict import Predictor
from fedsplit.exchange.probing import first_factors
from fedsplit.exchange.step import At
from fedsplit.probe.measure import this_device
from fedsplit.state.personal import Personal
from fedsplit.wire.ends import Tensors
from fedsplit.wire.link import JoinLink
from fedsplit.wire.messages import Bye, DataSummary, Finish, Forward, Hidden
from fedsplit.wire.tensors import WireTensor
from fedsplit_client import door
from fedsplit_client.backend import choose
from fedsplit_client.dealer import Dealer
from fedsplit_client.folds import Folds
from fedsplit_client.join import host_name
from fedsplit_client.keys import load_keys
from fedsplit_client.line import Interrupt, ServerLine
from fedsplit_client.orderly import OrderlyEnd
from fedsplit_client.own import Own
from fedsplit_client.session import Offer, Session


@contextmanager
def remote_predictor(
    link: str,
    *,
    name: str = "",
    topology: str = "",
    model: str = "",
    profile: DeviceProfile | None = None,
    device: str = "cpu",
    backend: str = "",
    state: str | Path | None = None,
    emit: Emit = silent,
) -> Iterator[Predictor]:
    """A predictor whose body is at the server (``fedsplit serve RUN.toml --resume --keep-open``).

    :raises ConfigError: the link, the name, the topology or the device.
    :raises LinkError: nobody there, or the run is still training.
    """
    parsed, name = JoinLink.parse(link), name or host_name()
    door.check(name=name, topology=topology)
    computes = choose(backend, device)
    personal = Personal(state)
    keys = load_keys(personal.keys)
    with ExitStack() as stack:
        end = OrderlyEnd(stack.enter_context(Dealer(parsed, keys)), name, emit)
        session = Session(end, parsed, name, profile or this_device(emit=emit), topology, emit, backend=computes.name)
        offer = session.hello()
        kept = personal.run(offer.run.run.name, server=parsed.server_key.hex() or parsed.endpoint, client=name)
        opened = computes.here(offer, model)
        if opened is None:
            with Dealer(parsed, keys) as bulk:
                opened = computes.fetched(bulk, offer, kept.path, name, emit)
        part = opened.part(offer)
        line = ServerLine(end, server=parsed.endpoint, patience_s=60.0, emit=emit)
        session.accept(offer, DataSummary(train_examples=0))
        stack.callback(_leave, end, name)
        answer = line.next(30.0)
        if not isinstance(answer.message, Finish):
            raise LinkError(f"{parsed.endpoint} is still training; ask again when the run is done")
        folds = Folds()
        own = Own(kept, head=offer.run.model.head == "local", drawn=lambda: first_factors(part))
        adapter, head = own.whole(answer.message, folds.take(answer.message, answer))
        part.load(adapter, head, patch=folds.patch)
        remote = _Remote(part, line, offer, name)
        section = offer.run.model
        encode = opened.reading(offer.run).encode
        assert encode is not None, "the command asks with texts"
        yield Predictor(section.task, section.labels, section.max_length, encode, remote.logits)


def _leave(end: OrderlyEnd, name: str) -> None:
    with suppress(LinkError):
        end.send(Bye(client=name, reason="answered"))


class _Remote:
    """One request after the other; ``micro`` numbers them."""

    def __init__(self, part: Part, line: ServerLine, offer: Offer, name: str) -> None:
        self._part, self._line, self._offer, self._name = part, line, offer, name
        self._asked = 0

    def logits(self, batch: Batch) -> NDArray[np.float32]:
        part = self._part
        if not part.split:
            return part.logits(batch, None)
        answer = self._ask(batch, part.look(batch))
        if part.labels_leave:
            found: NDArray[Any] = answer["logits"].numpy()
            return found
        return part.logits(batch, answer["h"])

    def _ask(self, batch: Batch, h_ND: WireTensor) -> Tensors:
        cut = self._part.plan.cut
        self._asked += 1
        at = At(
            run=self._offer.run.run.name,
            client=self._name,
            round=0,
            era=0,
            step=0,
            first_step=0,
            base_version=0,
            adapter_version=0,
            cut=(cut.c1, cut.c2),
        )
        message = Forward(
            **at.fields(micro=self._asked),
            lengths=batch.lengths,
            starts=batch.starts,
            width=batch.width,
            label_tokens=0,
            train=False,
        )
        line = as_planned(self._line, self._part.plan, self._offer.run.run.seed)
        line.send(message, {"h": h_ND})
        while True:
            try:
                packet = line.receive()
            except Interrupt:
                continue
            if isinstance(packet.message, Hidden) and packet.message.micro == self._asked:
                return packet.tensors
