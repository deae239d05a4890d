"""What to type after a run to have its adapter: not always is there one, and not always does the operator have it."""

from __future__ import annotations

from pathlib import Path

from fedsplit.config.run import RunFile
from fedsplit.method import stock
from fedsplit.method.of_run import method_of
from fedsplit.method.record import every, keeps_own
from fedsplit.state.own_adapter import is_whole
from fedsplit.state.rundir import RunDir


def how_to_export(run: RunFile, folder: Path) -> str:
    """A sentence, and the command for ``folder``, where the run was."""
    method = method_of(run)
    if keeps_own(method):
        return _own(folder)
    apart = any(phase.groups.name != stock.one.name for phase in every(method))
    groups = _groups(folder) if apart else ()
    if groups:
        return f"Export with:\n  {_line(folder, f'--group {groups[0]} ')}{_one_of('groups', groups)}"
    return f"Export with:\n  {_line(folder)}"


def _own(folder: Path) -> str:
    clients = folder / "clients"
    whole = tuple(path.name for path in sorted(clients.glob("*")) if path.is_dir() and is_whole(path))
    if whole:
        said = "Every client has an adapter of its own. Export it with"
        return f"{said}:\n  {_line(clients / whole[0])}{_one_of('clients', whole)}"
    said = "Every client has a part of the adapter for itself"
    if clients.is_dir():
        return f"{said}, and none of them holds all layers: there is no whole one to export"
    return f"{said}. A device that holds all layers exports the folder that fedsplit join named at its end"


def _groups(folder: Path) -> tuple[str, ...]:
    from fedsplit.train.kept import state_of  # not at the top: `--help` must not wait for it

    kept = RunDir(folder).load()
    return tuple(state_of(kept).groups) if kept is not None else ()


def _line(folder: Path, flag: str = "") -> str:
    return f"fedsplit export {folder} {flag}-o adapter/"


def _one_of(what: str, names: tuple[str, ...]) -> str:
    return f"\n  ({what}: {', '.join(names)})" if len(names) > 1 else ""
