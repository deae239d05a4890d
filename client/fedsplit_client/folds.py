"""The folds that a device has: what rounds have added to the base weights of the modules it holds.

The server sends those that it does not know to be here, ``since`` a version that it thinks this device has. What it
sends counts, also where others of those versions came before: a server that was started again may have repeated a
round.
"""

from __future__ import annotations

from fedsplit.lora.adapter import Adapter, Tensor
from fedsplit.method.stored import unpack_folds
from fedsplit.method.values import Fold, folded
from fedsplit.wire import Packet
from fedsplit.wire.messages import Evaluate, Finish, Start
from fedsplit_client.line import Restart


class Folds:
    """Folds by version; ``patch`` is what they add to the base of the state that came last."""

    def __init__(self) -> None:
        self._known: dict[int, Adapter] = {}
        self._version = 0
        self.patch: Adapter = {}

    def take(self, message: Start | Evaluate | Finish, packet: Packet) -> dict[str, Tensor]:
        """Keep the folds that come with a state; everything else that came with it.

        :raises Restart: folds in between are missing here; after another hello the server sends all.
        """
        folds, others = unpack_folds({name: tensor.numpy() for name, tensor in packet.tensors.items()})
        if message.since > self._version:
            raise Restart(f"the base is at version {self._version} here, the server takes it for {message.since}")
        kept = {version: patch for version, patch in self._known.items() if version <= message.since}
        self._known = kept | {fold.version: fold.patch for fold in folds}
        self._version = max(message.since, message.base_version)
        up_to = [Fold(version, patch) for version, patch in self._known.items() if version <= message.base_version]
        self.patch = folded(up_to)
        return others

    def forget(self) -> None:
        """Other layers are held from now on."""
        self._known, self._version, self.patch = {}, 0, {}
