"""A server and a client, over TCP with encryption and in memory: the same tests run on both."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from fedsplit.testing.faulty_ends import RawClientEnd, RawServerEnd
from fedsplit.testing.loopback import Loopback
from fedsplit_client import keys as client_keys
from fedsplit_client.dealer import Dealer
from fedsplit_server.gateway import Gateway
from fedsplit_server.keys import load_keys

Ends = tuple[RawServerEnd, Callable[[str], RawClientEnd]]


@pytest.fixture
def memory() -> Ends:
    """In memory only, for large matrices."""
    loopback = Loopback()
    return loopback.gateway, loopback.dealer


@pytest.fixture(params=["tcp", "loopback"])
def ends(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ends]:
    """(server end, maker of client ends by name)"""
    with ExitStack() as stack:
        if request.param == "loopback":
            loopback = Loopback()
            yield loopback.gateway, loopback.dealer
            return
        keys = load_keys(tmp_path / "server")
        gateway = stack.enter_context(Gateway("127.0.0.1", 0, keys.pair))

        def dealer(name: str) -> Dealer:
            pair = client_keys.load_keys(tmp_path / name)
            return stack.enter_context(Dealer(keys.link(*gateway.address), pair))

        yield gateway, dealer
