"""``fedsplit forget``: shows what is kept, asks, deletes that run and nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedsplit.cli.main import run as command
from fedsplit.state.personal import Personal


@pytest.fixture
def state(tmp_path: Path) -> Path:
    personal = Personal(tmp_path / "state")
    (personal.keys / "client.key").write_text("secret", "utf-8")
    for run, client in (("news", "pi"), ("news", "phone"), ("mail", "pi")):
        personal.run(run, server="tcp://host:5700", client=client).save(1, {"x": np.ones(5000, np.float32)})
    return tmp_path / "state"


def forget(state: Path, *words: str) -> int:
    with pytest.raises(SystemExit) as end:
        command(["forget", *words, "--state", str(state)])
    return int(end.value.code or 0)


def kept(state: Path) -> list[tuple[str, str]]:
    return [(info.run, info.client) for info in Personal(state).runs()]


def test_without_a_name_it_lists(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert forget(state) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["mail", "news", "news"]
    assert all("20." in line and "kB" in line for line in lines)


def test_one_run_goes_and_the_rest_stays(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert forget(state, "news", "--yes") == 0
    out = capsys.readouterr().out
    assert out.count("tcp://host:5700") == 2
    assert "deleted 2 folders of news" in out
    assert kept(state) == [("mail", "pi")]
    assert (state / "keys" / "client.key").read_text("utf-8") == "secret"
    assert len(list((state / "runs").iterdir())) == 1


def test_an_unknown_run_names_those_there_are(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert forget(state, "nwes", "--yes") == 2
    assert "mail, news" in capsys.readouterr().err
    assert len(kept(state)) == 3


def test_nobody_to_ask_deletes_nothing(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedsplit.cli.forget.ask", lambda question, yes: yes)
    assert forget(state, "news") == 0
    assert len(kept(state)) == 3


def test_a_run_that_is_going_on_is_kept(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Personal(state).run("mail", server="tcp://host:5700", client="pi").lock():
        assert forget(state, "mail", "--yes") == 2
    assert ("mail", "pi") in kept(state)
    assert "Traceback" not in capsys.readouterr().err


def test_fetched_models_go_with_the_last_run_that_uses_them(state: Path) -> None:
    personal = Personal(state)
    for name in ("aa11", "bb22"):
        (state / "models" / name).mkdir(parents=True)
        (state / "models" / name / "weights").write_text("…", "utf-8")
    for run, client, model in (("news", "pi", "aa11"), ("news", "phone", "bb22"), ("mail", "pi", "aa11")):
        personal.run(run, server="tcp://host:5700", client=client).uses(model)
    assert forget(state, "news", "--yes") == 0
    assert [path.name for path in (state / "models").iterdir()] == ["aa11"], "mail needs it"
    assert forget(state, "mail", "--yes") == 0
    assert not list((state / "models").iterdir())
    assert not list((state / "runs").iterdir())


def test_a_run_that_does_not_say_what_it_uses_keeps_all_models(state: Path) -> None:
    (state / "models" / "aa11").mkdir(parents=True)
    Personal(state).run("news", server="tcp://host:5700", client="pi").uses("aa11")
    assert forget(state, "news", "--yes") == 0
    assert (state / "models" / "aa11").is_dir()
