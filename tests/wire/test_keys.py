"""Keys are made once, kept for their owner alone, and a damaged file is said to be damaged."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from fedsplit.errors import ConfigError
from fedsplit.wire import JoinLink
from fedsplit_client import keys as client_keys
from fedsplit_server import keys as server_keys

posix = pytest.mark.skipif(os.name != "posix", reason="file modes are a POSIX matter")


def test_made_once_and_found_again(tmp_path: Path) -> None:
    first, again = server_keys.load_keys(tmp_path / "a"), server_keys.load_keys(tmp_path / "a")
    assert first == again
    assert (first.pair.secret, first.invite) == (again.pair.secret, again.invite)
    assert first != server_keys.load_keys(tmp_path / "b")
    pair = client_keys.load_keys(tmp_path / "c")
    assert pair == client_keys.load_keys(tmp_path / "c")
    assert (len(pair.public), len(pair.secret), pair.name) == (32, 32, pair.public.hex())


def test_secrets_are_not_printed(tmp_path: Path) -> None:
    keys = server_keys.load_keys(tmp_path)
    for secret in (keys.pair.secret, keys.invite):
        assert repr(secret) not in repr(keys)
        assert secret.hex() not in repr(keys)


def test_the_link_leads_to_these_keys(tmp_path: Path) -> None:
    keys = server_keys.load_keys(tmp_path)
    link = JoinLink.parse(str(keys.link("10.0.0.5", 5700)))
    assert link.server_key == keys.pair.public
    assert keys.invited(link.invite.hex())
    assert not keys.invited("")
    assert not keys.invited("ü" * 32)


@posix
def test_only_the_owner_may_read(tmp_path: Path) -> None:
    server_keys.load_keys(tmp_path)
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["invite", "server.json"]
    (tmp_path / "server.json").chmod(0o644)
    with pytest.raises(ConfigError, match=r"mode 0644.*chmod 600"):
        server_keys.load_keys(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b'{"public": "00", "secret": "zz"}', b'{"public": "00"}'])
def test_a_damaged_key_file(tmp_path: Path, content: bytes) -> None:
    client_keys.load_keys(tmp_path)
    (tmp_path / "client.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"client\.json: found a damaged key file"):
        client_keys.load_keys(tmp_path)


def test_a_damaged_invitation(tmp_path: Path) -> None:
    server_keys.load_keys(tmp_path)
    (tmp_path / "invite").write_text("short")
    with pytest.raises(ConfigError, match="damaged invitation"):
        server_keys.load_keys(tmp_path)


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("")
    with pytest.raises(ConfigError, match="keys"):
        client_keys.load_keys(tmp_path / "keys")
    with pytest.raises(ConfigError, match="keys"):
        server_keys.load_keys(tmp_path / "keys")
