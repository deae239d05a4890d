"""The line a device types: round trips, and every way to get it wrong has its own word."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsplit.errors import ConfigError
from fedsplit.wire import JoinLink

KEY, INVITE = bytes(range(32)), bytes(range(100, 116))


@given(
    st.sampled_from(["127.0.0.1", "pi.local", "::1", "fe80::1", "a-b.example.org"]),
    st.integers(1, 65_535),
    st.binary(min_size=48, max_size=48) | st.just(b""),
)
@settings(max_examples=100, deadline=None)
def test_every_link_comes_back(host: str, port: int, secrets: bytes) -> None:
    link = JoinLink(host, port, secrets[:32], secrets[32:])
    assert JoinLink.parse(str(link)) == link


def test_how_it_looks() -> None:
    text = str(JoinLink("10.0.0.5", 5700, KEY, INVITE))
    assert text.startswith("fedsplit://10.0.0.5:5700/?key=AAECAwQF")
    assert len(text.partition("key=")[2]) == 64
    assert str(JoinLink("::1", 5700)) == "fedsplit://[::1]:5700/?unencrypted"
    assert JoinLink("::1", 5700).endpoint == "[::1]:5700"


@pytest.mark.parametrize(
    "around", ["  '{}' \n", '"{}"', "“{}”", "„{}“", "‘{}’", "«\u00a0{}\u00a0»", "`{}`", "\ufeff<{}>", " “'{}'” "]
)
@pytest.mark.parametrize("host", ["10.0.0.5", "fe80::1"])
def test_pasted_with_quotes_and_spaces(around: str, host: str) -> None:
    for link in (JoinLink(host, 5700, KEY, INVITE), JoinLink(host, 5700)):
        assert JoinLink.parse(around.format(link)) == link


def test_no_cut_makes_a_link_without_encryption() -> None:
    for text in (str(JoinLink("::1", 5700, KEY, INVITE)), str(JoinLink("10.0.0.5", 5700))):
        for end in range(len(text)):
            with pytest.raises(ConfigError):
                JoinLink.parse(text[:end])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("http://10.0.0.5:5700/", "begins with fedsplit://"),
        ("10.0.0.5:5700", "fedsplit://"),
        ("", "fedsplit://"),
        ("fedsplit://10.0.0.5:5700/", "a link without a key"),
        ("fedsplit://10.0.0.5:5700/?", "in quotes: shells cut it"),
        ("fedsplit://10.0.0.5:5700", "?unencrypted from a server that does not encrypt"),
        ("fedsplit://10.0.0.5:5700/?unencrypted=yes", "exactly one key"),
        ("fedsplit://fe80::1:5700/?unencrypted", "fedsplit://HOST:PORT"),
        ("fedsplit://10.0.0.5/", "no port"),
        ("fedsplit://:5700/", "no host"),
        ("fedsplit://10.0.0.5:99999/", "fedsplit://HOST:PORT"),
        ("fedsplit://10.0.0.5:0/?unencrypted", "between 1 and 65535"),
        ("fedsplit://10.0.0.5:x/", "fedsplit://HOST:PORT"),
        ("fedsplit://[::1:5700/", "fedsplit://HOST:PORT"),
        ("fedsplit://me@10.0.0.5:5700/", "nothing beside"),
        ("fedsplit://10.0.0.5:5700/other", "nothing beside"),
        ("fedsplit://10.0.0.5:5700/?key=abc", "key of 3 letters"),
        ("fedsplit://10.0.0.5:5700/?key=", "key of 0 letters"),
        ("fedsplit://10.0.0.5:5700/?key=" + "ü" * 64, "64 letters"),
        ("fedsplit://10.0.0.5:5700/?kee=abc", "exactly one key"),
        ("fedsplit://10.0.0.5:5700/?key=a&key=b", "exactly one key"),
    ],
)
def test_what_is_wrong_is_said(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as error:
        JoinLink.parse(text)
    assert words in str(error.value)
    assert "found" in str(error.value)
    assert "join link" in str(error.value)


@given(st.text(max_size=60) | st.text(max_size=40).map(lambda text: "fedsplit://" + text))
@settings(max_examples=200, deadline=None)
def test_any_text_is_a_link_or_a_clear_error(text: str) -> None:
    try:
        link = JoinLink.parse(text)
    except ConfigError:
        return
    assert JoinLink.parse(str(link)) == link


def test_the_invitation_is_not_printed_by_accident() -> None:
    assert repr(INVITE) not in repr(JoinLink("10.0.0.5", 5700, KEY, INVITE))
