"""The run file that ``fedsplit new`` writes: every key with its meaning; what is not set is shown as its default."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec import NODEFAULT, Struct

from fedsplit.config.describe import Key, keys, meaning, shown
from fedsplit.config.load import loads
from fedsplit.config.run import ClientSection, RunFile

_WIDTH = 100
_ORDER = (
    "model", "data", "train", "lora", "rounds", "run", "server", "policy", "wire", "plan", "evaluate", "server_data",
    "method",
)  # fmt: skip
"""What a newcomer looks for first comes first."""

HEADER = """\
# A fedsplit run file: all that decides what is trained.
#   fedsplit serve FILE      host the run and print the line that a device must type
#   fedsplit simulate FILE   server and clients as real processes on this machine
# A line that begins with "#key =" shows a default; remove the # to change it.
"""


def template(values: Mapping[str, Mapping[str, Any]], clients: Sequence[Mapping[str, Any]] = ()) -> str:
    """A commented run file with ``values[section][key]`` set, and one ``[[clients]]`` section each of ``clients``.

    :raises ConfigError: if these values do not make a valid run file.
    """
    sections = _sections()
    parts = [HEADER]
    for name in _ORDER:
        parts.append(_section(name, sections[name], values.get(name, {})))
    parts.append(_clients(clients))
    text = "\n".join(parts)
    loads(text, "the new run file")
    return text


def _sections() -> dict[str, type[Struct]]:
    info = msgspec.inspect.type_info(RunFile)
    assert isinstance(info, msgspec.inspect.StructType)
    found = {one.encode_name: one.type for one in info.fields}
    return {name: kind.cls for name, kind in found.items() if isinstance(kind, msgspec.inspect.StructType)}


def _section(name: str, struct: type[Struct], values: Mapping[str, Any]) -> str:
    lines = [*_comment(meaning(struct)), f"[{name}]"]
    for key in keys(struct):
        lines += [*_comment(_text(key)), _value(key, values)]
    return "\n".join(lines) + "\n"


def _value(key: Key, values: Mapping[str, Any]) -> str:
    if key.name in values:
        return f"{key.name} = {shown(values[key.name])}"
    assert key.default is not NODEFAULT, f"{key.name} must be given"
    return f"#{key.name} = {shown(key.default)}"


def _text(key: Key) -> str:
    return f"{key.text} {key.values[0].upper()}{key.values[1:]}." if key.values.startswith("one of") else key.text


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(text, _WIDTH, break_on_hyphens=False)]


def _clients(clients: Sequence[Mapping[str, Any]]) -> str:
    lines = _comment(meaning(ClientSection))
    for client in clients:
        lines += ["[[clients]]", *(f"{key} = {shown(value)}" for key, value in client.items()), ""]
    if not clients:
        lines.append("#[[clients]]")
        for key in keys(ClientSection):
            example = "pi" if key.name == "name" else [2, 4] if key.name == "cut" else key.default
            lines += [*_comment(key.text), f"#{key.name} = {shown(example)}"]
        lines.append("")
    return "\n".join(lines)
