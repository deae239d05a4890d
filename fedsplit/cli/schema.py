"""``fedsplit schema``: the JSON schemas of run files, device profiles and plans."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from msgspec import Struct

from fedsplit.config.run import RunFile
from fedsplit.config.schema import schema as make
from fedsplit.devices.profile import DeviceProfile
from fedsplit.errors import ConfigError, Problem
from fedsplit.plan.types import Plan

KINDS: dict[str, type[Struct]] = {"run": RunFile, "profile": DeviceProfile, "plan": Plan}


def schema(kind: Annotated[str, typer.Argument(help="run, profile or plan.")] = "run") -> None:
    """Print the JSON schema of a kind of file."""
    if kind not in KINDS:
        raise ConfigError([Problem("KIND", kind, f"one of {', '.join(KINDS)}")])
    typer.echo(json.dumps(make(KINDS[kind]), indent=2))
