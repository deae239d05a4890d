"""The way to a server, step by step: link, name, port, key, protocol, invitation, version. Run in a child process.

Run as a module it prints its findings as one line of JSON: sockets and their library belong to a process that may be
stopped, because a name server, or a program that accepts and stays silent, can hold one up.
"""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from fedsplit_client.doctor.apart import run_apart
from fedsplit_client.doctor.finding import Finding

DEADLINE_S = 45.0
CONNECT_S = 4.0
_MAIN = "import sys; from fedsplit_client.doctor.way import main; main(sys.argv[1], sys.argv[2])"


def way(link: str, state: Path, deadline_s: float = DEADLINE_S) -> list[Finding]:
    """All that can be found out about the server of a join line without joining. ``state``: the folder with keys."""
    outcome = run_apart(_MAIN, (link, str(state)), deadline_s=deadline_s)
    found = [Finding(**json.loads(line)) for line in outcome.said.splitlines() if line.startswith("{")]
    if outcome.code == 0:
        return found
    why = f"no end after {deadline_s:.0f} s" if outcome.code is None else outcome.last_words or f"status {outcome.code}"
    text = f"could not be looked at any further: {why}"
    return [*found, Finding(check="server", level="problem", found=text, fix="look at the findings above")]


def main(link: str, state: str) -> None:
    """Print the findings as they come, one JSON object a line."""
    for finding in steps(link, Path(state)):
        sys.stdout.write(json.dumps(asdict(finding)) + "\n")
        sys.stdout.flush()


def steps(text: str, state: Path, timeout_s: float = 6.0) -> Iterator[Finding]:
    """One finding after the other; the first problem is the last one."""
    from fedsplit.errors import ConfigError
    from fedsplit.wire.link import JoinLink

    try:
        link = JoinLink.parse(text)
    except ConfigError as error:
        yield _problem("link", str(error), "copy the whole line that the server printed, in quotes")
        return
    yield Finding(check="link", level="ok", found=f"a join line of {link.endpoint}")
    for look in (_name, _port):
        yield (found := look(link.host, link.port))
        if found.level == "problem":
            return
    from fedsplit_client.doctor.handshake import handshake

    yield from handshake(link, state, timeout_s)


def _name(host: str, port: int) -> Finding:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        fix = "check the name in the join line and this machine's network"
        return _problem("name", f"there is no host called {host!r} ({error.strerror or error})", fix)
    return Finding(check="name", level="ok", found=f"{host} is {', '.join(sorted({str(one[4][0]) for one in found}))}")


def _port(host: str, port: int) -> Finding:
    try:
        socket.create_connection((host, port), timeout=CONNECT_S).close()
    except OSError as error:
        why = "no answer" if isinstance(error, TimeoutError) else (error.strerror or str(error)).lower()
        fix = "is the server running, are host and port right, does a firewall let them through?"
        return _problem("port", f"nothing answers at {host}:{port} ({why})", fix)
    return Finding(check="port", level="ok", found=f"something listens at {host}:{port}")


def _problem(check: str, found: str, fix: str) -> Finding:
    return Finding(check=check, level="problem", found=found, fix=fix)
