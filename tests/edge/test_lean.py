"""A process that becomes another one: what it was asked for arrives, and it ends as the first one would have."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fedsplit.cli.lean import WAITS, go_lean
from fedsplit.config.load import loads
from fedsplit.devices.limits import Limits
from fedsplit.errors import InternalError
from fedsplit.plan.traffic import Known
from fedsplit.plan.types import ClientPlan, Cut, LayerPlan, Topology
from fedsplit.wire.messages import Asset
from fedsplit_client import fresh
from fedsplit_client.session import Offer
from fedsplit_client.wish import Wish, pack, unpack
from tests.run.conftest import run_file
from tests.run.party import LAPTOP

pytestmark = pytest.mark.skipif(os.name != "posix", reason="a process becomes another one on POSIX alone")

LINK = "fedsplit://127.0.0.1:1/?unencrypted"
BECOME = """
import os, signal, sys
from fedsplit.cli.lean import WAITS, go_lean
from fedsplit_client.wish import Wish, pack
if "interrupted" in sys.argv:
    signal.pthread_sigmask(signal.SIG_BLOCK, WAITS)
    os.kill(os.getpid(), signal.SIGINT)
print("before", flush=True)
packed = b"no wish" if "broken" in sys.argv else pack(Wish(link=sys.argv[1], data="not there", backend="edge"))
go_lean(packed, None, ["json", "yes"])
print("it came back")
"""


def become(*words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", BECOME, LINK, *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_a_wish_is_handed_over_whole() -> None:
    run = loads(run_file({"a": 'topology = "u"'}))
    layers = tuple(LayerPlan(layer=layer, place="client") for layer in (0, 5))
    plan = ClientPlan(client="a", topology=Topology.U, cut=Cut(1, 5), layers=layers, batch=4)
    offer = Offer(run, plan, "base", (Asset("graphs-1/manifest.json", 3, "00"),), 2, Known(eval_rows=7))
    wish = Wish(link=LINK, data="a.jsonl", profile=LAPTOP, own="/here", limits=Limits(threads=1), agreed=offer)
    assert unpack(pack(wish)) == wish
    with pytest.raises(InternalError, match="cannot be read"):
        unpack(b"{}")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ((), 6, "error: not there: no such file or folder"),
        (("broken",), 70, "error: what one process of fedsplit handed to the next cannot be read"),
        (("interrupted",), 130, "interrupted: no round was trained here yet"),
    ],
    ids=["wrong data", "no wish", "Ctrl-C in between"],
)
def test_the_new_process_ends_as_the_command_does(words: tuple[str, ...], code: int, said: str) -> None:
    done = become(*words)
    assert done.stdout == "before\n"
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.returncode == code


def test_where_it_cannot_be_the_old_process_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert fresh.possible()
    monkeypatch.setattr(sys, "executable", str(tmp_path / "gone"))
    go_lean(pack(Wish(link=LINK, data="x")), None, [])
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & set(WAITS)
