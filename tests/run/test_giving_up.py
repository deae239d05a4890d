"""A server that gives the run up says so to whoever is connected: nobody waits out a patience for nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedsplit.errors import Closed, Timeout
from fedsplit.wire import WireTensor
from fedsplit.wire.messages import Alive, Bye, Message
from fedsplit_client import keys as client_keys
from fedsplit_client.dealer import Dealer
from fedsplit_server.gateway import Gateway
from fedsplit_server.keys import load_keys
from tests.run.conftest import Rows, run_file
from tests.run.party import Party, written
from tests.run.processes import Stage
from tests.waiting import LIMIT_S

U, LOCAL = 'topology = "u"\ncut = [1, 3]', 'topology = "local"'


@pytest.mark.soak
def test_processes_over_tcp(tmp_path: Path, rows: Callable[[str], dict[str, Rows]]) -> None:
    """More steps than fit before the deadline, three times."""
    text = run_file({"a": U}, rounds__deadline_s=1.0, train__steps=5000)
    data = {name: written(tmp_path / f"{name}.jsonl", own) for name, own in rows("a").items()}
    with Stage(tmp_path, text, data) as stage:
        server = stage.serve()
        clients = [stage.join(name) for name in data]
        said = server.end(expected=4)
        begun = time.monotonic()
        heard = [client.end(expected=4) for client in clients]
    assert time.monotonic() - begun < LIMIT_S, "the clients waited, as for a server that may come back"
    assert "round 1 failed 3 times" in said
    for text in heard:
        assert f"127.0.0.1:{stage.port} gave the run up: round 1 failed 3 times: 0 of 1 updates" in text
        assert "the same command goes on" in text


def test_a_client_that_never_got_company(party: Callable[..., Party]) -> None:
    run = party({"a": U}, rounds__clients=2, rounds__patience_s=20.0, start=False)
    run.world.tolerated = {"server", "a"}
    run.start().finish()
    assert isinstance(run.actors["server"].error, Timeout)
    with pytest.raises(Closed, match=r"gave the run up: waited 20 s for clients: 1 of 2 are here"):
        raise run.actors["a"].error or AssertionError("it ended well")
    assert run.world.now_s < 30.0


def test_a_client_in_the_middle_of_a_round_is_told(party: Callable[..., Party]) -> None:
    """``c`` is busy with steps of its own when the third attempt fails, and hears of it afterwards."""
    run = party({"a": U, "c": LOCAL}, rounds__deadline_s=50.0, start=False)
    run.slow["c"] = 40.0
    run.world.tolerated = {"server", "a", "c"}
    run.start().finish()
    assert isinstance(run.actors["server"].error, Timeout)
    for name in "ac":
        with pytest.raises(Closed, match=r"gave the run up: round 1 failed 3 times"):
            raise run.actors[name].error or AssertionError(f"{name} did not end with an error")
    assert run.world.now_s < 3 * 50.0 + 2 * 40.0 + 60.0, "the clients waited out their patience"


def test_the_last_word_arrives_behind_much_else(tmp_path: Path) -> None:
    """The server closes its socket right after it; what it had sent before is still on its way."""
    keys = load_keys(tmp_path / "server")
    gateway = Gateway("127.0.0.1", 0, keys.pair)
    said: list[Message] = []

    def listen(dealer: Dealer) -> None:
        with dealer:
            while not (said and isinstance(said[-1], Bye)):
                packet = dealer.receive(LIMIT_S)
                if packet is None:
                    break
                said.append(packet.message)

    dealer = Dealer(keys.link(*gateway.address), client_keys.load_keys(tmp_path / "client"))
    dealer.send(Alive())
    incoming = gateway.receive(LIMIT_S)
    assert incoming is not None
    gateway.send(incoming.identity, Alive(), {"x": WireTensor.of(np.zeros(1 << 22, np.float32))})
    gateway.send(incoming.identity, Bye(reason="nobody came"))
    listener = threading.Thread(target=listen, args=(dealer,))
    listener.start()
    gateway.close()
    listener.join()
    assert [type(message) for message in said] == [Alive, Bye]
