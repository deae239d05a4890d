"""Is a profile possible? Every problem at once, each with its path, what was found, what was expected, what to do."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from fedsplit.devices.limits import Limits, limit_problems
from fedsplit.devices.profile import FACTOR_LEAST, FACTOR_MOST, DeviceProfile, Link
from fedsplit.devices.units import SPEEDS, parse, units_of
from fedsplit.errors import Problem

DTYPES = ("float32", "bfloat16", "float16")
_REQUIRED_LINK = ("up_bps", "down_bps")
_MAY_BE_ZERO = (
    *("reserve_bytes", "runtime_bytes", "layer_overhead_s", "disk_free_bytes", "latency_s"),
    *("disk_write_bps", "disk_read_bps"),
)
_PLAUSIBLE = {
    "memory_bytes": (1e6, 1e19), "memory_bandwidth_bps": (1e6, 1e15), "up_bps": (10.0, 1e12), "down_bps": (10.0, 1e12),
    "latency_s": (0.0, 60.0), "layer_overhead_s": (0.0, 60.0), "power_w": (1e-3, 1e6), "slowdown": (1.0, 1e6),
}  # fmt: skip


def shape_problems(raw: Mapping[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    """Turn texts with units into numbers and find everything that keeps ``raw`` from being a DeviceProfile."""
    problems: list[Problem] = []
    plain = _section(raw, DeviceProfile, "", problems)
    if "flops" in plain:
        plain["flops"] = _speeds(plain["flops"], DTYPES, "flops", problems)
    if plain.get("matmul_flops"):
        plain["matmul_flops"] = _speeds(plain["matmul_flops"], (*DTYPES, "int8"), "matmul_flops", problems)
    if "flops_by_threads" in plain:
        plain["flops_by_threads"] = _by_threads(plain["flops_by_threads"], "flops_by_threads", problems)
    if plain.get("link") is not None:
        plain["link"] = _table(plain["link"], Link, "link", problems)
    if plain.get("limits") is not None:
        plain["limits"] = _table(plain["limits"], Limits, "limits", problems)
    return plain, problems


def limits_shape(raw: Mapping[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    """As ``shape_problems``, of the table of limits alone."""
    problems: list[Problem] = []
    return _section(raw, Limits, "limits.", problems), problems


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
    if key in ("flops", "link", "limits", "flops_by_threads", "matmul_flops"):
        return value
    if kind is str:
        if not isinstance(value, str):
            problems.append(Problem(path, repr(value), "a text"))
        return value
    if kind is bool:
        if not isinstance(value, bool):
            problems.append(Problem(path, repr(value), "true or false"))
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


def _speeds(raw: Any, dtypes: tuple[str, ...], path: str, problems: list[Problem]) -> dict[str, Any]:
    if not isinstance(raw, Mapping) or not raw:
        fix = f"write [{path}] with float32 = …"
        problems.append(Problem(path, repr(raw), "a table of FLOP/s a dtype", fix))
        return {}
    for key in sorted(set(raw) - set(dtypes)):
        problems.append(Problem(f"{path}.{key}", "an unknown dtype", f"one of {', '.join(dtypes)}"))
    return {key: _number(value, SPEEDS, f"{path}.{key}", problems) for key, value in raw.items()}


def _by_threads(raw: Any, path: str, problems: list[Problem]) -> dict[str, Any]:
    if not isinstance(raw, Mapping):
        problems.append(Problem(path, repr(raw), "a table of a dtype's FLOP/s by threads", f"write [{path}.float32]"))
        return {}
    found: dict[str, Any] = {}
    for dtype, table in raw.items():
        where = f"{path}.{dtype}"
        if dtype not in DTYPES:
            problems.append(Problem(where, "an unknown dtype", f"one of {', '.join(DTYPES)}"))
        if not isinstance(table, Mapping):
            problems.append(Problem(where, repr(table), "FLOP/s by threads", 'e.g. 1 = "9 GFLOPS"'))
            continue
        wrong = [count for count in table if not (str(count).isascii() and str(count).isdigit() and int(count) > 0)]
        problems.extend(Problem(f"{where}.{count}", repr(count), "a number of threads, 1 or more") for count in wrong)
        found[dtype] = {key: _number(value, SPEEDS, f"{where}.{key}", problems) for key, value in table.items()}
    return found


def value_problems(plain: Mapping[str, Any]) -> list[Problem]:
    """Numbers that no machine has: negative, zero link, a forgotten unit, more reserve than memory.

    ``plain``: a profile's table with plain numbers; what is missing in it or could not be read is passed over.
    """
    limits = plain.get("limits")
    own = limit_problems({key: value for key, value in limits.items() if value is not None}) if limits else ()
    measured = {key: value for key, value in plain.items() if key != "limits"}
    return [*_signs(measured), *_memory(measured), *_factors(measured), *own]


def _factors(plain: Mapping[str, Any]) -> Iterator[Problem]:
    for key in ("time_factor", "memory_factor"):
        value = plain.get(key)
        if value is not None and not FACTOR_LEAST <= value <= FACTOR_MOST:
            expected = f"{FACTOR_LEAST:g} to {FACTOR_MOST:g}"
            yield Problem(key, f"{value:g}", expected, "measure again with `fedsplit profile`, which starts from 1")


def _signs(plain: Mapping[str, Any]) -> Iterator[Problem]:
    if plain.get("name") == "":
        yield Problem("name", "an empty text", "a name", "the file's name without .toml will do")
    for path, value in _numbers(plain):
        key = path.rsplit(".", 1)[-1]
        least, most = _plausible(path)
        if not math.isfinite(value) or value < 0:
            yield Problem(path, f"{value:g}", "a finite number, not negative")
        elif value == 0 and key not in _MAY_BE_ZERO:
            fix = "leave [link] out where there is no link" if path.startswith("link.") else ""
            yield Problem(path, "0", "more than 0", fix)
        elif value and not least <= value <= most:
            yield Problem(path, f"{value:g}", f"{least:g} to {most:g}", "is the unit missing, or another one?")
    flops = plain.get("flops")
    if flops and "float32" not in flops:
        yield Problem("flops.float32", "nothing", "FLOP/s in float32", "every other dtype is optional")


def _plausible(path: str) -> tuple[float, float]:
    """The least and the most that a machine has, of what would make nonsense of a plan: a unit that was forgotten."""
    section, key = path.partition(".")[0], path.rsplit(".", 1)[-1]
    if section in ("flops", "flops_by_threads", "matmul_flops"):
        return 1e6, 1e18
    return _PLAUSIBLE.get(key, (0.0, math.inf))


def _numbers(plain: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for key, value in plain.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{key}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}{key}", value


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
