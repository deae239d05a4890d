"""Run files from and to TOML. Reading reports every problem at once, with its path, and what to do about it."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import msgspec
import tomli_w
from msgspec.structs import replace

from fedsplit.config.check import check
from fedsplit.config.run import RunFile
from fedsplit.config.shape import walk
from fedsplit.errors import ConfigError


def load(path: str | Path) -> RunFile:
    """Read a run file. Relative paths in it are taken from its own folder and returned absolute.

    :raises ConfigError: if it is absent, not TOML, or wrong; carries all problems.
    """
    file = Path(path).expanduser()
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"there is no run file {file}; make one with: fedsplit new --out {file}") from None
    except IsADirectoryError:
        raise ConfigError(f"{file} is a folder; expected a run file such as {file / 'run.toml'}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"not UTF-8 at byte {error.start}; save it as UTF-8 text", str(file)) from None
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", str(file)) from None
    return anchor(loads(text, str(file)), file.resolve().parent)


def loads(text: str, source: str = "run file") -> RunFile:
    """Read a run file from its text; ``source`` names it in messages.

    :raises ConfigError: if it is not TOML or wrong; carries all problems.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"not valid TOML: {error}", source) from None
    return validated(document, source)


def validated(document: dict[str, Any], source: str = "run file") -> RunFile:
    """A run file from plain data, for example after flags were laid over it.

    :raises ConfigError: carries all problems, of single values and of values that contradict each other.
    """
    kept, problems = walk(document, RunFile)
    run = counted(msgspec.convert(kept, RunFile))
    reported = tuple(problem.path for problem in problems)
    # A rule that rests on a value which was already reported would only repeat it in other words.
    problems += [problem for problem in check(run) if not _reported(problem.path, reported)]
    if problems:
        raise ConfigError(problems, source)
    return run


def counted(run: RunFile) -> RunFile:
    """``rounds.clients`` = 0 becomes the number of ``[[clients]]``, at least one."""
    if run.rounds.clients:
        return run
    return replace(run, rounds=replace(run.rounds, clients=max(1, len(run.clients))))


def _reported(path: str, reported: tuple[str, ...]) -> bool:
    return any(path == one or path.startswith((one + ".", one + "[")) for one in reported)


def dumps(run: RunFile) -> str:
    """The run file as TOML with every value written out; ``loads(dumps(run)) == run``."""
    return as_toml(run)


def as_toml(value: msgspec.Struct) -> str:
    """Any Struct as TOML, every value written out; what is None is left out."""
    return tomli_w.dumps(_without_none(msgspec.to_builtins(value)), multiline_strings=False)


def _without_none(value: Any) -> Any:
    """TOML has no null: an absent key says the same."""
    if isinstance(value, dict):
        return {key: _without_none(one) for key, one in value.items() if one is not None}
    if isinstance(value, list | tuple):
        return [_without_none(one) for one in value]
    return value


def anchor(run: RunFile, folder: Path) -> RunFile:
    """Make the paths of ``run`` absolute, relative ones taken from ``folder``.

    Data files always are paths. A model, a device or a method is one only if it exists there: otherwise it is a name.
    """

    def path(value: str) -> str:
        return str((folder / Path(value).expanduser()).resolve()) if value else value

    def maybe(value: str) -> str:
        return path(value) if value and (folder / Path(value).expanduser()).exists() else value

    def method(value: str) -> str:
        if value.endswith(".py"):
            return maybe(value)
        file, colon, name = value.rpartition(":")
        return maybe(file) + colon + name if colon else value

    replace = msgspec.structs.replace
    phases = tuple(replace(one, name=method(one.name)) for one in run.method.phases)
    clients = tuple(replace(one, data=path(one.data), device=maybe(one.device)) for one in run.clients)
    return replace(
        run,
        run=replace(run.run, dir=path(run.run.dir or f"runs/{run.run.name}")),
        model=replace(run.model, path=maybe(run.model.path)),
        server_data=replace(run.server_data, path=path(run.server_data.path)),
        method=replace(run.method, name=method(run.method.name), phases=phases),
        clients=clients,
    )
