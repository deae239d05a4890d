"""What is wrong with a flag itself is said at once: before anything is dialled, written, measured or loaded."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fedsplit.cli.main import run as command
from fedsplit.errors import ConfigError
from fedsplit.split.placement import device_of

Command = Callable[..., tuple[int, str]]
NOT_THERE = "cuda:99"


@pytest.fixture
def fedsplit(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """Run the command in an empty folder: its exit code and its words."""
    monkeypatch.setenv("NO_COLOR", "1")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def call(*words: object) -> tuple[int, str]:
        with pytest.raises(SystemExit) as end:
            command([str(word) for word in words])
        error = capsys.readouterr().err
        assert "Traceback" not in error
        assert list((tmp_path / "here").iterdir()) == []
        return int(end.value.code or 0), error

    return call


@pytest.fixture
def port() -> Iterator[socket.socket]:
    """A server that must not be dialled."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()


@pytest.mark.parametrize("name", ["mps", "meta", "cpu:0", "cuda:", "cuda:-1", "gpu", "cuda:1234567890123", ""])
def test_only_devices_that_segments_run_on(name: str) -> None:
    with pytest.raises(ConfigError, match="expected cpu, cuda or cuda:NUMBER"):
        device_of(name)


def test_a_bench_asked_for_a_device_that_is_not_there(fedsplit: Command) -> None:
    for bench in ("step", "memory", "growth", "large", "quality"):
        code, error = fedsplit("bench", bench, "--device", NOT_THERE)
        assert (code, "run with --device cpu" in error) == (2, True), bench


@pytest.mark.parametrize("device", [NOT_THERE, "meta", "mps"])
def test_a_profile_of_a_device_that_is_not_there(fedsplit: Command, device: str) -> None:
    code, error = fedsplit("profile", "--device", device)
    assert (code, f"--device: found '{device}'" in error or f"--device: found {device}," in error) == (2, True)


def test_a_server_asked_for_a_device_that_is_not_there(fedsplit: Command, tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('[model]\npath = "no-such-model"\n', "utf-8")
    code, error = fedsplit("serve", path, "--device", NOT_THERE)
    assert (code, "run with --device cpu" in error) == (2, True)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--device", NOT_THERE], ["run with --device cpu"]),
        (["--device", "mps"], ["expected cpu, cuda or cuda:NUMBER"]),
        (["--name", "../me"], ["'../me', which is no client name"]),
        (["--topology", "x", "--name", "-"], ["'x', expected one of local, u, v, w", "2 problems"]),
        (["--out", "no/such/folder/factors.safetensors"], ["--out", "not there"]),
    ],
)
def test_a_device_that_joins(
    fedsplit: Command, port: socket.socket, tmp_path: Path, flags: list[str], words: list[str]
) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": "one row"}), "utf-8")
    link = f"fedsplit://127.0.0.1:{port.getsockname()[1]}/?unencrypted"
    what = ["--data", tmp_path / "rows.jsonl", "--state", tmp_path / "state", "--yes"]
    code, error = fedsplit("join", link, *what, *flags)
    assert code == 2
    assert all(word in error for word in words), error


def test_a_question_through_the_split(fedsplit: Command, port: socket.socket, tmp_path: Path) -> None:
    link = f"fedsplit://127.0.0.1:{port.getsockname()[1]}/?unencrypted"
    code, error = fedsplit("predict", link, "a text", "--device", NOT_THERE, "--state", tmp_path / "state")
    assert (code, "run with --device cpu" in error) == (2, True)
