"""Does the right server answer, in the same protocol, and take the invitation? By one probe, without a hello."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

from fedsplit import __version__
from fedsplit.errors import Closed, ConfigError, FedsplitError, LinkError, Refused, RemoteProtocolError, Timeout
from fedsplit.state.personal import Personal
from fedsplit.wire.link import JoinLink
from fedsplit.wire.messages import PROTOCOL, Bye
from fedsplit_client.dealer import Dealer
from fedsplit_client.doctor.finding import Finding
from fedsplit_client.gauge import Gauge, Turn
from fedsplit_client.keys import load_keys

OTHER = "use the same version on both sides: pip install --upgrade fedsplit"


def handshake(link: JoinLink, state: Path, timeout_s: float = 6.0) -> Iterator[Finding]:
    """Key, protocol, invitation, version, in this order; the first problem is the last finding."""
    with ExitStack() as stack:
        try:
            keys = load_keys(Personal(state).keys)
            dealer = stack.enter_context(Dealer(link, keys, connect_timeout_s=timeout_s))
        except Refused as error:
            yield _problem("key", error, "copy the line that this server printed at its last start")
            return
        except (Timeout, Closed) as error:
            yield _problem("key", error, "look at the server's terminal")
            return
        except FedsplitError as error:
            yield _problem("key", error, "")
            return
        secret = "the key in the join line is this server's" if link.server_key else "no encryption, as the line says"
        yield Finding(check="key", level="ok" if link.server_key else "warning", found=secret)
        # The bare end: a client drops packets of other protocols, and here they are what is looked for.
        yield from _asked(Gauge(dealer, link))
        with suppress(LinkError):
            dealer.send(Bye())


def _asked(gauge: Gauge) -> Iterator[Finding]:
    speaks = Finding(check="protocol", level="ok", found=f"{PROTOCOL} on both sides")
    try:
        gauge.begin()
    except RemoteProtocolError as error:
        yield _problem("protocol", error, OTHER)
    except ConfigError as error:
        yield speaks
        yield _problem("invitation", error, "copy the line that this server printed at its last start")
    except Turn:
        yield speaks
        yield Finding(check="invitation", level="ok", found="taken; another device measures its link now")
    except LinkError as error:
        yield _problem("protocol", error, "look at the server's terminal; another program may listen there")
    else:
        yield speaks
        yield Finding(check="invitation", level="ok", found="the server takes it")
        yield _version(gauge.software)


def _version(theirs: str) -> Finding:
    if not theirs:
        return Finding(check="version", level="skipped", found="this server does not say which fedsplit it is")
    if theirs == __version__:
        return Finding(check="version", level="ok", found=f"fedsplit {theirs} on both sides")
    text = f"fedsplit {theirs} there, {__version__} here; the protocol is the same"
    return Finding(check="version", level="warning", found=text, fix=OTHER)


def _problem(check: str, error: Exception, fix: str) -> Finding:
    return Finding(check=check, level="problem", found=str(error), fix=fix)
