"""Forward passes that train nothing: clients measure or predict with the current global adapter."""

from __future__ import annotations

import torch
from torch import Tensor

from fedsplit.config.run import ModelSection
from fedsplit.lora.adapter import Adapter, Head
from fedsplit.split.engine import Engine, ForwardJob
from fedsplit.split.lora import write
from fedsplit.split.rows import unpack
from fedsplit.split.tensors import from_wire, to_wire
from fedsplit.train.batch import Batch, labels_from_wire
from fedsplit.train.evaluate import score
from fedsplit.train.predict import at_last
from fedsplit.wire import Packet, WireTensor
from fedsplit.wire.messages import Forward, Hidden
from fedsplit_server.content import check_content
from fedsplit_server.desk import Out, Seat, key, rows_of, where


class Inference:
    """Answers ``Forward(train=False)`` with the body's output, or with logits where the head is here (``v``)."""

    def __init__(self, engine: Engine, model: ModelSection) -> None:
        self._engine, self._model, self._task = engine, model, model.task
        self._params: dict[str, Tensor] = {}

    def use(self, adapter: Adapter, head: Head) -> None:
        """From now on answer with these factors."""
        self._params = write(adapter, head, self._engine.segment)

    def answer(self, name: str, seat: Seat, packet: Packet) -> Out:
        """(N, D) hidden states; in topology ``v`` the summed ``loss`` (1,) and, for classes and numbers, ``logits``.

        :raises RemoteProtocolError: the tensors do not fit the model.
        """
        message = packet.message
        assert isinstance(message, Forward)
        base = self._engine.segment.base
        check_content(message, packet.tensors, self._model, base, labels_here=seat.labels_here)
        job = ForwardJob(
            key=key(name, message),
            rows=rows_of(message),
            h_ND=from_wire(packet.tensors["h"], self._engine.device),
            layers=(seat.held.lo, seat.held.hi),
            params=self._params,
            train=False,
        )
        [h_ND] = self._engine.forward([job])
        reply = Hidden(**where(message), label_tokens=message.label_tokens)
        if not seat.labels_here:
            return Out(name, reply, {"h": to_wire(h_ND)})
        if "labels" not in packet.tensors:
            with torch.no_grad():
                found = self._engine.segment.logits(job.rows, unpack(h_ND, job.rows), self._params)
            return Out(name, reply, {"logits": WireTensor.of(at_last(self._task, job.rows, found))})
        sent = from_wire(packet.tensors["labels"], self._engine.device)
        labels = labels_from_wire(self._task, sent, job.rows)
        batch = Batch(job.rows, labels, message.label_tokens)
        with torch.no_grad():
            loss, logits = score(self._task, self._engine.segment, batch, unpack(h_ND, job.rows), self._params)
        tensors = {"loss": to_wire(loss.float().reshape(1))}
        return Out(name, reply, tensors if logits is None else {**tensors, "logits": to_wire(logits.float())})
