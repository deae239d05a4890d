"""The flag ``--device`` of commands that leave the computing to other processes: checked before any is started."""

from __future__ import annotations

from typing import Annotated

import typer

Device = Annotated[str, typer.Option(help="Where the server's body runs: cpu, cuda, cuda:1.")]


def check_device(name: str) -> None:
    """:raises ConfigError: this machine does not have it."""
    if name == "cpu":
        return
    # Only now: the processes themselves need torch, the command that starts them does not.
    from fedsplit.split.placement import device_of

    device_of(name)
