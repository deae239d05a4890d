"""The join link: everything a device needs to reach one server and be let in, in one line.

``fedsplit://HOST:PORT/?key=…`` where the key is the base64url of 48 bytes: the server's public key, so that the
device talks to nobody else, and the invitation, so that the server knows it was asked to come. A server without
encryption prints ``fedsplit://HOST:PORT/?unencrypted``: it says so, because shells and chat programs cut links at the
question mark, and what is left must never make a device talk in clear.
"""

from __future__ import annotations

import base64
import binascii
import string
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, urlsplit

from fedsplit.errors import ConfigError, Problem

KEY_BYTES = 32
INVITE_BYTES = 16
UNENCRYPTED = "unencrypted"
QUOTES = "'\"`´‘’‚‛“”„‟«»‹›<>"
"""What programs put around a link, or make of its quotes."""
INVISIBLE = "\u200b\u200c\u200d\u2060\ufeff"
"""Letters without width that come along with copied text; ``str.strip`` does not know them as white space."""


@dataclass(frozen=True)
class JoinLink:
    """``server_key`` (32 bytes) and ``invite`` (16 bytes) are both empty when the server does not encrypt."""

    host: str
    port: int
    server_key: bytes = b""
    invite: bytes = field(default=b"", repr=False)

    def __post_init__(self) -> None:
        lengths = len(self.server_key), len(self.invite)
        if lengths not in {(0, 0), (KEY_BYTES, INVITE_BYTES)}:
            raise _wrong("key and invitation of {} and {} bytes".format(*lengths), "32 and 16 bytes, or neither")
        if not 0 < self.port < 65_536:
            raise _wrong(f"port {self.port}", "a port between 1 and 65535")
        if not self.host or any(letter in self.host for letter in "/?#@[] "):
            raise _wrong(f"host {self.host!r}", "a host name or an address")

    @property
    def endpoint(self) -> str:
        """``host:port``, an IPv6 address in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        if not self.server_key:
            return f"fedsplit://{self.endpoint}/?{UNENCRYPTED}"
        # 48 bytes are exactly 64 letters, so there is never padding.
        return f"fedsplit://{self.endpoint}/?key={base64.urlsafe_b64encode(self.server_key + self.invite).decode()}"

    @staticmethod
    def parse(text: str) -> JoinLink:
        """Read a link as typed or pasted; quotes and white space around it do not matter.

        :raises ConfigError: it is not a join link; says which part is wrong.
        """
        cleaned = text.strip(QUOTES + INVISIBLE + string.whitespace + "\u00a0\u202f")
        try:
            parts = urlsplit(cleaned)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise _wrong(f"{cleaned!r} ({error})", "fedsplit://HOST:PORT/?key=…") from None
        if parts.scheme != "fedsplit":
            raise _wrong(f"{cleaned!r}", "a link that begins with fedsplit://")
        if not host or port is None:
            raise _wrong(f"no {'host' if not host else 'port'} in {cleaned!r}", "fedsplit://HOST:PORT/?key=…")
        if parts.username is not None or parts.path not in {"", "/"} or parts.fragment:
            raise _wrong(f"{cleaned!r}", "nothing beside host, port and key")
        return JoinLink(host, port, *_secrets(parts.query))


CUT = "copy the whole line that the server printed, in quotes: shells cut it at ? and &"


def _secrets(query: str) -> tuple[bytes, bytes]:
    """Server key and invitation out of the part after the question mark."""
    if not query:
        raise _wrong("a link without a key", f"?key=…, or ?{UNENCRYPTED} from a server that does not encrypt", CUT)
    if query == UNENCRYPTED:
        return b"", b""
    pairs = parse_qsl(query, keep_blank_values=True)
    if [name for name, _ in pairs] != ["key"]:
        raise _wrong(f"?{query}", "exactly one key=…", CUT)
    try:
        raw = base64.b64decode(pairs[0][1].encode(), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    if len(raw) != KEY_BYTES + INVITE_BYTES:
        raise _wrong(f"a key of {len(pairs[0][1])} letters", "64 letters of A-Z a-z 0-9 - _")
    return raw[:KEY_BYTES], raw[KEY_BYTES:]


def _wrong(found: str, expected: str, fix: str = "copy the whole line that the server printed") -> ConfigError:
    return ConfigError([Problem("join link", found, expected, fix)])
