"""The wire owns no socket and needs no torch, so that a device can load it in a moment."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import sys
for name in {blocked!r}:
    sys.modules[name] = None
import fedsplit.wire, fedsplit.wire.session, fedsplit.wire.ledger
import fedsplit.testing.loopback, fedsplit.testing.faults
"""


def run(code: str) -> None:
    paths = [path for path in sys.path if path]
    subprocess.run([sys.executable, "-c", f"import sys; sys.path[:0] = {paths!r}\n{code}"], check=True, timeout=240)


def test_no_socket_and_no_torch() -> None:
    run(CODE.format(blocked=["zmq", "socket", "asyncio", "torch", "transformers", "peft"]))


def test_both_ends_without_torch() -> None:
    code = "\nimport fedsplit_server.gateway, fedsplit_client.dealer, fedsplit_client.keys"
    run(CODE.format(blocked=["torch", "transformers", "peft", "asyncio"]) + code)
