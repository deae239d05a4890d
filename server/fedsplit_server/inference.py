"""Forward passes that train nothing: clients measure or predict with the current global adapter."""

from __future__ import annotations

import torch
from torch import Tensor

from fedsplit.config.run import ModelSection
from fedsplit.errors import InternalError
from fedsplit.exchange.coded import encoded
from fedsplit.lora.adapter import Adapter, ModuleKey
from fedsplit.lora.lowrank import LowRank
from fedsplit.method.record import GlobalState
from fedsplit.split.engine import Engine, ForwardJob
from fedsplit.split.lora import keys, write, write_patch
from fedsplit.split.rows import unpack
from fedsplit.split.tensors import from_wire, to_wire
from fedsplit.train.batch import Batch, labels_from_wire
from fedsplit.train.score import at_last, score
from fedsplit.wire import Packet, WireTensor
from fedsplit.wire.messages import Forward, Hidden
from fedsplit_server.content import check_content, read
from fedsplit_server.desk import Out, Seat, key, rows_of, where


class Inference:
    """Answers ``Forward(train=False)`` with the body's output, or with logits where the head is here (``v``)."""

    def __init__(self, engine: Engine, model: ModelSection) -> None:
        self._engine, self._model, self._task = engine, model, model.task
        self._state: GlobalState | None = None
        self._head: dict[str, Tensor] = {}
        self._leaves: dict[tuple[ModuleKey, int], tuple[LowRank, dict[str, Tensor]]] = {}

    @property
    def state(self) -> GlobalState:
        """Whose factors answer."""
        if self._state is None:
            raise InternalError("no state was given to answer with")
        return self._state

    def use(self, state: GlobalState) -> None:
        """From now on answer with these factors, for each client at the ranks of its plan."""
        self._state, self._leaves = state, {}
        self._head = write({}, state.head, self._engine.segment)
        self._head |= write_patch(state.patch if state.folds else {}, self._engine.segment)

    def answer(self, name: str, seat: Seat, packet: Packet) -> Out:
        """(N, D) hidden states; in topology ``v`` the summed ``loss`` (1,) and, for classes and numbers, ``logits``.

        :raises RemoteProtocolError: the tensors do not fit the model.
        """
        message = packet.message
        assert isinstance(message, Forward)
        base = self._engine.segment.base
        packet = read(seat.codecs, packet, base)
        check_content(message, packet.tensors, self._model, base, labels_here=seat.labels_here)
        params = self._params(seat.factors)
        job = ForwardJob(
            key=key(name, message),
            rows=rows_of(message),
            h_ND=from_wire(packet.tensors["h"], self._engine.device),
            layers=(seat.held.lo, seat.held.hi),
            params=params,
            train=False,
        )
        [h_ND] = self._engine.forward([job])
        reply = Hidden(**where(message), label_tokens=message.label_tokens)
        if not seat.labels_here:
            return Out(name, reply, encoded(seat.codecs, reply, {"h": to_wire(h_ND)}, 0))
        if "labels" not in packet.tensors:
            with torch.no_grad():
                found = self._engine.segment.logits(job.rows, unpack(h_ND, job.rows), params)
            return Out(name, reply, {"logits": WireTensor.of(at_last(self._task, job.rows, found))})
        sent = from_wire(packet.tensors["labels"], self._engine.device)
        labels = labels_from_wire(self._task, sent, job.rows)
        batch = Batch(job.rows, labels, message.label_tokens)
        with torch.no_grad():
            loss, logits = score(self._task, self._engine.segment, batch, unpack(h_ND, job.rows), params)
        tensors = {"loss": to_wire(loss.float().reshape(1))}
        return Out(name, reply, tensors if logits is None else {**tensors, "logits": to_wire(logits.float())})

    def _params(self, factors: Adapter) -> dict[str, Tensor]:
        """A client's factors beside the head; clients that are given the same ones share their tensors."""
        missing = {key: part for key, part in factors.items() if (key, id(part)) not in self._leaves}
        if missing:
            leaves = write(missing, {}, self._engine.segment)
            names = keys(self._engine.segment)
            for key, part in missing.items():
                # The part is kept as well, so that no other one gets its id.
                self._leaves[key, id(part)] = part, {name: leaves[name] for name in names.get(key, ())}
        params = dict(self._head)
        for key, part in factors.items():
            params |= self._leaves[key, id(part)][1]
        return params
