"""What people get wrong, through the command: one message that says what was found and what to do, and its exit code.

Nothing here ends in a traceback, waits without an end, or disturbs the run it was aimed at. The command runs in this
process; the server that devices talk to is a process of its own.
"""

from __future__ import annotations

import json
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
from safetensors.numpy import load_file, save_file

from fedsplit.cli.main import run as command
from fedsplit.devices.load import save
from fedsplit.errors import RemoteProtocolError
from fedsplit.events import Joined, Left, Note, Waiting
from fedsplit.testing.models import tiny
from fedsplit.wire.link import JoinLink
from fedsplit.wire.messages import Hello, Refuse
from fedsplit_client.dealer import Dealer
from fedsplit_client.keys import load_keys as device_keys
from fedsplit_server.gateway import Gateway
from fedsplit_server.keys import load_keys as server_keys
from tests.ports import HeldPort
from tests.run.conftest import Rows, run_file
from tests.run.party import LAPTOP, written
from tests.run.processes import Stage
from tests.waiting import LIMIT_S

MakeRows = Callable[[str], dict[str, Rows]]
CLASSES: dict[str, object] = {"model__task": "classification", "model__labels": ["short", "long"]}


@dataclass(frozen=True)
class Said:
    """How a command ended."""

    code: int
    out: str
    error: str
    seconds: float


Command = Callable[..., Said]


@pytest.fixture
def fedsplit(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run the command as ``python -m fedsplit`` does."""
    monkeypatch.setenv("NO_COLOR", "1")

    def call(*words: object) -> Said:
        capsys.readouterr()
        begun = time.monotonic()
        with pytest.raises(SystemExit) as end:
            command([str(word) for word in words])
        seconds = time.monotonic() - begun
        out, error = capsys.readouterr()
        assert "Traceback" not in error
        code = end.value.code
        return Said(code if isinstance(code, int) else 0, out, error, seconds)

    return call


# ---- the operator's side -------------------------------------------------------------------------------------------


@pytest.fixture
def serve(tmp_path: Path, fedsplit: Command) -> Command:
    """``serve(settings…)``: a run file with these settings, served."""

    def call(*flags: object, **settings: object) -> Said:
        path = tmp_path / "run.toml"
        path.write_text(run_file({}, **{"rounds__clients": 1, **settings}), "utf-8")
        return fedsplit("serve", path, "--port", 0, *flags)

    return call


def test_a_run_file_with_three_mistakes(fedsplit: Command, tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('[model]\npath = "pydoc-llama"\n[train]\nstpes = 3\nbatch = "many"\n[lora]\nrank = 0\n', "utf-8")
    said = fedsplit("serve", path)
    assert said.code == 2
    for words in ("3 problems", "train.stpes", "did you mean", "train.batch", "lora.rank"):
        assert words in said.error


def test_no_run_file(fedsplit: Command, tmp_path: Path) -> None:
    said = fedsplit("serve", tmp_path / "nothing.toml")
    assert (said.code, "fedsplit new" in said.error) == (2, True)


def test_a_model_folder_without_safetensors(serve: Command, tmp_path: Path) -> None:
    folder = tiny(tmp_path / "model", "llama")
    (folder / "model.safetensors").unlink()
    said = serve(model__path=str(folder))
    assert said.code == 2
    assert "safetensors" in said.error


def test_a_family_that_is_not_supported(serve: Command, tmp_path: Path) -> None:
    folder = tiny(tmp_path / "model", "llama")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "mamba"}), "utf-8")
    said = serve(model__path=str(folder))
    assert said.code == 2
    for word in ("mamba", "llama", "bert", "gpt2"):
        assert word in said.error


def test_weights_of_another_model_than_the_config(serve: Command, tmp_path: Path) -> None:
    folder = tiny(tmp_path / "model", "llama")
    weights = load_file(folder / "model.safetensors")
    name = "model.layers.1.self_attn.q_proj.weight"
    save_file({**weights, name: weights[name][:-1].copy()}, folder / "model.safetensors", {"format": "pt"})
    said = serve(model__path=str(folder))
    assert said.code == 2
    assert name in said.error
    assert "(23, 24)" in said.error
    assert "config.json says (24, 24)" in said.error


def test_a_model_that_is_nowhere(serve: Command) -> None:
    said = serve(model__path="./no/such/model")
    assert said.code == 2
    assert "no/such/model" in said.error


def test_texts_longer_than_the_model_can_read(serve: Command) -> None:
    said = serve(model__max_length=100_000)
    assert said.code == 2
    assert "model.max_length: found 100000, expected at most the model's context of" in said.error


def test_a_body_that_does_not_fit(serve: Command) -> None:
    said = serve("--gpu-memory", "1MB", server__stash_bytes=10_000_000)
    assert said.code == 7
    assert "out of memory: the body needs" in said.error
    assert "--gpu-memory allows 1 MB" in said.error
    assert "server.stash_bytes: lower it" in said.error


def test_a_device_that_this_machine_does_not_have(serve: Command) -> None:
    said = serve("--device", "cuda:7")
    assert said.code == 2
    assert "run with --device cpu" in said.error


def test_a_method_that_devices_cannot_follow(serve: Command, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(FOLDS, "utf-8")
    said = serve(method__name="./mine.py:folds")
    assert said.code == 2
    assert "parts of 7 x 11 become 11 x 7" in said.error


def test_a_run_that_began_and_is_not_resumed(serve: Command, tmp_path: Path) -> None:
    settings: dict[str, object] = {"rounds__patience_s": 0.1}
    first = serve(**settings)
    assert first.code == 4
    assert "waited 0 s for clients: 0 of 1 are here; the state is saved" in first.error
    again = serve(**settings)
    assert (again.code, "add --resume" in again.error) == (2, True)
    other = serve("--resume", **settings, lora__rank=5)
    assert other.code == 2
    assert "lora.rank: found 5, expected 3 as when the run began" in other.error


def test_a_simulated_client_with_damaged_rows(fedsplit: Command, tmp_path: Path) -> None:
    bad = tmp_path / "b.jsonl"
    bad.write_text('{"text": "fine"}\n{"text": broken\n', "utf-8")
    clients = {"b": f"data = {json.dumps(str(bad))}"}
    path = tmp_path / "run.toml"
    path.write_text(run_file(clients, run__dir=str(tmp_path / "run")), "utf-8")
    said = fedsplit("simulate", path)
    assert said.code == 6
    assert "error: client b failed:" in said.error
    assert "b.jsonl:2:" in said.error


# ---- a device's side -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, rows: MakeRows) -> Iterator[Stage]:
    """A server that waits for more clients than will come, one of which is there. What is aimed at it here must not
    disturb it: at the end both are still there, and a clean Ctrl-C ends them."""
    folder = tmp_path_factory.mktemp("stage")
    data = {"a": written(folder / "a.jsonl", rows("a")["a"])}
    settings = {**CLASSES, "rounds__clients": 9, "rounds__patience_s": 600.0, "policy__exposes_tokens": False}
    text = run_file({}, **settings, policy__min_front=1, policy__shares_labels=False)
    with Stage(folder, text, data) as one:
        one.server = one.serve()
        one.member = one.join("a")
        yield one
        until_joined(one)
        for process in (one.member, one.server):
            assert process.child.poll() is None
            process.signal(signal.SIGINT)
            process.end(expected=130)


@pytest.fixture
def join(stage: Stage, fedsplit: Command, tmp_path: Path) -> Command:
    """``join(flags…)``: as another device."""

    def call(*flags: object, link: str = "", data: Path | None = None, name: str = "b") -> Said:
        what = ("--data", data or stage.data["a"], "--name", name, "--state", tmp_path / "state", "--yes")
        profile = () if "--profile" in flags else ("--profile", stage.profile)
        return fedsplit("join", link or stage.link(), *what, *profile, *flags)

    return call


def test_no_server_there(join: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    connects_within(0.5, monkeypatch)
    with HeldPort() as port:
        said = join(link=f"fedsplit://127.0.0.1:{port.number}/?unencrypted")
    assert said.code == 4
    assert f"nothing answers at 127.0.0.1:{port.number} (connection refused)" in said.error
    assert said.seconds < LIMIT_S


def test_a_program_that_takes_connections_and_stays_silent(join: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    connects_within(0.5, monkeypatch)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        said = join(link=f"fedsplit://127.0.0.1:{port}/?unencrypted")
    assert said.code == 4
    assert f"127.0.0.1:{port} accepts connections but does not answer" in said.error
    assert said.seconds < LIMIT_S


def test_a_link_that_is_none(join: Command) -> None:
    said = join(link="fedsplit://somewhere")
    assert (said.code, "join link" in said.error) == (2, True)


def test_a_link_that_a_shell_cut(stage: Stage, join: Command) -> None:
    said = join(link=stage.link().partition("?")[0])
    assert said.code == 2
    assert "a link without a key" in said.error
    assert "in quotes" in said.error


def test_another_servers_key(stage: Stage, join: Command, tmp_path: Path) -> None:
    other = server_keys(tmp_path / "other")
    said = join(link=str(other.link("127.0.0.1", stage.port)))
    assert said.code == 4
    assert "refuses the handshake: the join link holds another server's key" in said.error
    assert said.seconds < LIMIT_S


def test_an_old_invitation(stage: Stage, join: Command) -> None:
    link = JoinLink.parse(stage.link())
    said = join(link=str(JoinLink(link.host, link.port, link.server_key, bytes(16))))
    assert said.code == 2
    assert "the key in the join line is not this run's; copy it again" in said.error


def test_two_devices_with_one_name(stage: Stage, join: Command) -> None:
    until_joined(stage)
    said = join(name="a")
    assert said.code == 2
    assert "another device is in this run as 'a'; choose another name with --name" in said.error
    assert stage.member.child.poll() is None
    assert not any(isinstance(event, Left) and event.client == "a" for event in stage.server.events)


def test_two_processes_of_one_device_with_one_name(stage: Stage, fedsplit: Command) -> None:
    until_joined(stage)
    state = stage.folder / "devices" / "a"
    said = fedsplit("join", stage.link(), "--data", stage.data["a"], "--name", "a", "--state", state, "--yes")
    assert said.code == 2
    assert "stop it, or join under another --name" in said.error
    assert stage.member.child.poll() is None


def test_a_name_that_is_none(join: Command) -> None:
    said = join(name="../me")
    assert (said.code, "is no client name" in said.error) == (2, True)


def test_a_port_in_use(stage: Stage, fedsplit: Command, tmp_path: Path) -> None:
    stage.link()
    path = tmp_path / "run.toml"
    path.write_text(run_file({}, rounds__clients=1), "utf-8")
    said = fedsplit("serve", path, "--port", stage.port)
    assert said.code == 4
    assert f"port {stage.port} is in use by another program; stop it, or choose another port" in said.error


def test_another_base_model(join: Command, tmp_path: Path) -> None:
    said = join("--model", tiny(tmp_path / "model", "llama"))
    assert said.code == 2
    assert "is not the base model of this run" in said.error
    assert "leave --model out to fetch the right parts" in said.error


def test_a_device_that_is_too_small(join: Command, tmp_path: Path) -> None:
    small = msgspec.structs.replace(LAPTOP, free_memory_bytes=405_000_000, memory_bytes=500_000_000)
    save(small, tmp_path / "small.toml")
    said = join("--profile", tmp_path / "small.toml")
    assert said.code == 3
    assert "no plan for b" in said.error
    assert "(binding: memory of the device)" in said.error
    assert re.search(r"Nearest is u .+: it needs \d+ MB of 364 MB \(most of it .+: \d+ MB\)", said.error), said.error
    assert re.search(r"The smallest change that helps: (.+, or )?free [\d.]+ MB of the device's memory", said.error), (
        said.error
    )


def test_a_device_too_small_for_the_topology_it_insists_on(join: Command, tmp_path: Path) -> None:
    small = msgspec.structs.replace(LAPTOP, free_memory_bytes=405_000_000, memory_bytes=500_000_000)
    save(small, tmp_path / "small.toml")
    said = join("--profile", tmp_path / "small.toml", "--topology", "local")
    assert said.code == 3
    assert "Nearest is local" in said.error, said.error
    assert re.search(r"free [\d.]+ MB of the device's memory", said.error), said.error


def test_a_topology_that_the_policy_forbids(join: Command) -> None:
    said = join("--topology", "v")
    assert said.code == 3
    assert "shares_labels" in said.error


def test_no_such_file(join: Command, tmp_path: Path) -> None:
    said = join(data=tmp_path / "nothing.jsonl")
    assert (said.code, "nothing.jsonl" in said.error) == (6, True)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"text": "fine", "label": "short"}\n{"text": broken\n', ("rows.jsonl:2:",)),
        ("", ("rows.jsonl",)),
        ('{"text": "fine", "label": "short"}\n{"text": "odd", "label": "medium"}\n', ("rows.jsonl:2:", "medium")),
        ('{"text": "fine", "label": 0}\n{"text": "odd", "label": 7}\n', ("rows.jsonl:2:", "7")),
        ('{"words": "fine", "label": 0}\n', ("rows.jsonl:1:", "words")),
    ],
    ids=["a broken line", "an empty file", "an unknown label", "a label out of range", "no text column"],
)
def test_a_data_file_that_is_wrong(join: Command, tmp_path: Path, content: str, words: tuple[str, ...]) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(content, "utf-8")
    said = join(data=path)
    assert said.code == 6
    for word in words:
        assert word in said.error
    assert "expected" in said.error or "found" in said.error


def test_texts_that_are_cut_are_counted(stage: Stage) -> None:
    until_joined(stage)
    [note] = [event for event in stage.member.events if isinstance(event, Note) and "longer than" in event.text]
    assert note.warning
    assert "tokens cut off" in note.text
    assert "raise model.max_length" in note.text


def test_a_device_without_consent_sends_nothing(stage: Stage, fedsplit: Command, tmp_path: Path) -> None:
    what = ("--data", stage.data["a"], "--name", "c", "--state", tmp_path / "state", "--profile", stage.profile)
    said = fedsplit("join", stage.link(), *what)
    assert said.code in (2, 4)
    assert "--yes" in said.error or "did not agree" in said.error


def test_ctrl_c_at_the_question(
    stage: Stage, fedsplit: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ctrl_c(*_: object, **__: object) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr("fedsplit.cli.cards.ask", ctrl_c)
    what = ("--data", stage.data["a"], "--name", "d", "--state", tmp_path / "state", "--profile", stage.profile)
    said = fedsplit("join", stage.link(), *what)
    assert said.code == 130
    assert "interrupted: nothing was joined, and nothing of your data was sent" in said.error


def test_ctrl_c_before_the_first_round(stage: Stage) -> None:
    process = stage.join("e", data=stage.data["a"])
    process.until(Waiting)
    process.signal(signal.SIGINT)
    said = process.end(expected=130)
    assert "no round was trained here yet; what was fetched is kept" in said


def test_a_client_of_another_version(stage: Stage, tmp_path: Path) -> None:
    link = JoinLink.parse(stage.link())
    with Dealer(link, device_keys(tmp_path / "keys")) as dealer:
        dealer.send(Hello(protocol=2, client="new"))
        packet = None
        for _ in range(60):
            packet = packet or dealer.receive(1.0)
        assert packet is not None
        assert isinstance(packet.message, Refuse)
        assert "the other side speaks protocol 2, this side protocol 1" in packet.message.reason
        assert "same version" in packet.message.reason + packet.message.fix


def test_a_server_of_another_version(join: Command, tmp_path: Path) -> None:
    keys = server_keys(tmp_path / "server")
    with Gateway("127.0.0.1", 0, keys.pair) as gateway:
        over = threading.Event()
        thread = threading.Thread(target=speak_protocol_2, args=(gateway, over))
        thread.start()
        try:
            said = join(link=str(keys.link("127.0.0.1", gateway.address[1])))
        finally:
            over.set()
            thread.join()
    assert said.code == RemoteProtocolError.exit_code == 5
    assert "the other side speaks protocol 2, this side protocol 1" in said.error
    assert said.seconds < LIMIT_S


def speak_protocol_2(gateway: Gateway, over: threading.Event) -> None:
    while not over.is_set():
        if (incoming := gateway.receive(0.1)) is not None:
            gateway.send(incoming.identity, Refuse(protocol=2, code="protocol", reason="you are old"))


def connects_within(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Instead of six: it is waited for in vain."""
    monkeypatch.setitem(Dealer.__init__.__kwdefaults__, "connect_timeout_s", seconds)


def until_joined(stage: Stage) -> None:
    if not any(isinstance(event, Joined) for event in stage.server.events):
        stage.server.until(Joined, client="a")
    if not any(isinstance(event, Waiting) for event in stage.member.events):
        stage.member.until(Waiting)


FOLDS = '''
from fedsplit.lora import LowRank
from fedsplit.method import Merged, Method, merge_rule, method


@method(paper="arXiv:2410.09432", title="Folds")
def folds() -> Method:
    """Folds the transposed product."""

    @merge_rule(mutates_base=True)
    def merge(parts, p_K, memory):
        turned = LowRank(parts[0].A_RN.T, parts[0].B_MR.T)
        return Merged(adapter=parts[0], fold=turned)

    return Method(merge=merge)
'''
