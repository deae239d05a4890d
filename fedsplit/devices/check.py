"""Is a profile possible? Every problem at once, each with its path, what was found, what was expected, what to do."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from fedsplit.devices.profile import FACTOR_LEAST, FACTOR_MOST, DeviceProfile, Link
from fedsplit.devices.units import SPEEDS, parse, units_of
from fedsplit.errors import Problem

DTYPES = ("float32", "bfloat16", "float16")
_REQUIRED_LINK = ("up_bps", "down_bps")
_MAY_BE_ZERO = ("reserve_bytes", "runtime_bytes", "layer_overhead_s", "disk_free_bytes", "latency_s")


def shape_problems(raw: Mapping[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    """Turn texts with units into numbers and find everything that keeps ``raw`` from being a DeviceProfile."""
    problems: list[Problem] = []
    plain = _section(raw, DeviceProfile, "", problems)
    if "flops" in plain:
        plain["flops"] = _flops(plain["flops"], problems)
    if plain.get("link") is not None:
        plain["link"] = _table(plain["link"], Link, "link", problems)
    return plain, problems


def _table(raw: Any, struct: type[msgspec.Struct], path: str, problems: list[Problem]) -> dict[str, Any]:
    if isinstance(raw, Mapping):
        return _section(raw, struct, f"{path}.", problems)
    problems.append(Problem(path, repr(raw), "a table", f"write a [{path}] section"))
    return {}


def _section(
    raw: Mapping[str, Any], struct: type[msgspec.Struct], prefix: str, problems: list[Problem]
) -> dict[str, Any]:
    fields = {field.name: field for field in msgspec.structs.fields(struct)}
    plain: dict[str, Any] = {}
    for key, value in raw.items():
        if key not in fields:
            near = difflib.get_close_matches(key, fields, 1)
            fix = f"did you mean {near[0]!r}?" if near else f"the keys are {', '.join(fields)}"
            problems.append(Problem(prefix + key, "an unknown key", "a key of a device profile", fix))
            continue
        plain[key] = _value(value, key, fields[key].type, prefix + key, problems)
    missing = [name for name, field in fields.items() if field.required and name not in raw]
    problems.extend(Problem(prefix + name, "nothing", "a value", "add this key") for name in missing)
    return plain


def _value(value: Any, key: str, kind: Any, path: str, problems: list[Problem]) -> Any:
    if key in ("flops", "link"):
        return value
    if kind is str:
        if not isinstance(value, str):
            problems.append(Problem(path, repr(value), "a text"))
            return None
        return value
    units = units_of(key)
    number = _number(value, units, path, problems)
    if kind is not int or number is None:
        return number
    # Half a byte comes of units ("0.1 GiB") and is rounded; half a core is a mistake.
    if not math.isfinite(number) or (not units and number != round(number)):
        problems.append(Problem(path, repr(value), "a whole number"))
        return None
    return round(number)


def _number(value: Any, units: dict[str, float], path: str, problems: list[Problem]) -> float | None:
    if isinstance(value, str):
        number = parse(value, units)
        if number is None:
            known = ", ".join(units) if units else "no unit"
            problems.append(Problem(path, repr(value), f"a number with one of the units: {known}"))
        return number
    if isinstance(value, bool) or not isinstance(value, int | float):
        problems.append(Problem(path, repr(value), "a number"))
        return None
    return float(value)


def _flops(raw: Any, problems: list[Problem]) -> dict[str, Any]:
    if not isinstance(raw, Mapping) or not raw:
        problems.append(Problem("flops", repr(raw), "a table of FLOP/s a dtype", "write [flops] with float32 = …"))
        return {}
    for key in sorted(set(raw) - set(DTYPES)):
        problems.append(Problem(f"flops.{key}", "an unknown dtype", f"one of {', '.join(DTYPES)}"))
    return {key: _number(value, SPEEDS, f"flops.{key}", problems) for key, value in raw.items()}


def value_problems(profile: DeviceProfile) -> list[Problem]:
    """Numbers that no machine has: negative, zero link, more reserve than memory."""
    return plain_problems(msgspec.to_builtins(profile))


def plain_problems(plain: Mapping[str, Any]) -> list[Problem]:
    """The same of a profile as a table, some of whose values could not be read: they are missing or None."""
    known = {key: value for key, value in plain.items() if value is not None}
    return [*_signs(known), *_memory(known), *_factors(known)]


def _factors(plain: Mapping[str, Any]) -> Iterator[Problem]:
    for key in ("time_factor", "memory_factor"):
        value = plain.get(key, 1.0)
        if not FACTOR_LEAST <= value <= FACTOR_MOST:
            expected = f"{FACTOR_LEAST:g} to {FACTOR_MOST:g}"
            yield Problem(key, f"{value:g}", expected, "measure again with `fedsplit profile`, which starts from 1")


def _signs(plain: Mapping[str, Any]) -> Iterator[Problem]:
    if plain.get("name") == "":
        yield Problem("name", "an empty text", "a name", "the file's name without .toml will do")
    for path, value in _numbers(plain):
        key = path.rsplit(".", 1)[-1]
        if not math.isfinite(value) or value < 0:
            yield Problem(path, f"{value:g}", "a finite number, not negative")
        elif value == 0 and key not in _MAY_BE_ZERO:
            fix = "leave [link] out where there is no link" if path.startswith("link.") else ""
            yield Problem(path, "0", "more than 0", fix)
    if plain.get("flops") and "float32" not in plain["flops"]:
        yield Problem("flops.float32", "nothing", "FLOP/s in float32", "every other dtype is optional")


def _numbers(plain: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for prefix, table in (("", plain), ("flops.", plain.get("flops", {})), ("link.", plain.get("link", {}))):
        for key, value in table.items():
            if isinstance(value, int | float):
                yield prefix + key, value


def _memory(plain: Mapping[str, Any]) -> Iterator[Problem]:
    total, free, reserve = (plain.get(key) for key in ("memory_bytes", "free_memory_bytes", "reserve_bytes"))
    if total is not None and free is not None and free > total:
        yield Problem("free_memory_bytes", f"{free:,}", f"at most memory_bytes, {total:,}")
    if reserve is not None and free is not None and reserve > free:
        fix = "nothing would be left for training; lower the reserve"
        yield Problem("reserve_bytes", f"{reserve:,}", f"at most free_memory_bytes, {free:,}", fix)
    threads, cores = plain.get("threads"), plain.get("cores")
    if threads and cores and cores > 0 and threads > 4 * cores:
        yield Problem("threads", str(threads), f"at most four a core, {4 * cores}")
