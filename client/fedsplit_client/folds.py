"""The folds that a device has: what rounds have added to the base weights of the modules it holds.

Only their sum is kept, which takes no more than the matrices themselves. The server sends what it does not know to be
here, ``since`` a version that it thinks this device has. Zero: all there is, which counts instead of what came before;
a server that was started again, and may have repeated a round, always begins so.
"""

from __future__ import annotations

from fedsplit.lora.adapter import Tensor
from fedsplit.lora.patch import Patch, summed
from fedsplit.method.stored import unpack_folds
from fedsplit.wire import Packet
from fedsplit.wire.messages import Evaluate, Finish, Start
from fedsplit_client.line import Restart


class Folds:
    """``patch`` is what all folds add to the base of the state that came last."""

    def __init__(self) -> None:
        self._version = 0
        self.patch: Patch = {}

    def take(self, message: Start | Evaluate | Finish, packet: Packet) -> dict[str, Tensor]:
        """Add the folds that come with a state; everything else that came with it.

        :raises Restart: folds in between are missing here, or too many are; after another hello the server sends all.
        """
        steps, others = unpack_folds({name: tensor.numpy() for name, tensor in packet.tensors.items()})
        if message.since == 0:
            self.forget()
        elif not message.since <= self._version <= message.base_version:
            here, there = self._version, f"{message.since} to {message.base_version}"
            raise Restart(f"the base is at version {here} here, the server speaks of {there}")
        # Some of what comes may be here already: the server has not heard of it, and versions never change.
        self.patch = summed((step.patch for step in steps if step.version > self._version), self.patch)
        self._version = message.base_version
        return others

    def forget(self) -> None:
        """Other layers are held from now on."""
        self._version, self.patch = 0, {}
