"""The owner's limits as flags: the same on `join` (for one run) and on `profile` (kept)."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import typer

from fedsplit.devices.limits import Limits
from fedsplit.devices.load import limits_from
from fedsplit.errors import ConfigError

PANEL = "What the owner allows ('none' lifts a limit)"

Memory = Annotated[str, typer.Option("--max-memory", help="Of the whole program, e.g. 400MB.", rich_help_panel=PANEL)]
Threads = Annotated[str, typer.Option("--threads", help="That compute.", rich_help_panel=PANEL)]
Upload = Annotated[
    str, typer.Option("--upload-per-day", help="Of all runs together, e.g. 200MB.", rich_help_panel=PANEL)
]
Between = Annotated[str, typer.Option("--between", help="Hours, e.g. 22:00-06:00.", rich_help_panel=PANEL)]
Mains = Annotated[
    bool | None, typer.Option("--only-on-mains/--on-battery", help="Not on battery.", rich_help_panel=PANEL)
]
Busy = Annotated[
    bool | None,
    typer.Option("--pause-when-busy/--when-busy", help="Not while other programs compute.", rich_help_panel=PANEL),
]
Temperature = Annotated[str, typer.Option("--max-temp", help="Of the processor in °C, e.g. 75.", rich_help_panel=PANEL)]

FLAGS = {
    "max_memory_bytes": "--max-memory",
    "threads": "--threads",
    "upload_per_day_bytes": "--upload-per-day",
    "between": "--between",
    "max_temperature_c": "--max-temp",
}


def asked(
    max_memory: str, threads: str, upload: str, between: str, mains: bool | None, busy: bool | None, temperature: str
) -> dict[str, Any]:
    """The flags that were given, as a table of limits with texts; ``none`` is no limit. Raises ConfigError."""
    texts = (max_memory, threads, upload, between, temperature)
    found: dict[str, Any] = {key: text for key, text in zip(FLAGS, texts, strict=True) if text}
    for key, text in found.items():
        if text.lower() == "none":
            found[key] = "" if key == "between" else 0
    flags = {"only_on_mains": mains, "pause_when_busy": busy}
    found |= {key: value for key, value in flags.items() if value is not None}
    changed(None, found)
    return found


def changed(before: Limits | None, given: dict[str, Any]) -> Limits | None:
    """``before`` with what was given; None where no limit is left. Raises ConfigError that names the flags."""
    try:
        new = limits_from(given)
    except ConfigError as error:
        named = [one._replace(path=FLAGS.get(one.path.partition(".")[2], one.path)) for one in error.problems]
        raise ConfigError(named) from None
    found = msgspec.structs.replace(before or Limits(), **{key: getattr(new, key) for key in given})
    return None if found == Limits() else found
