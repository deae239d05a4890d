"""What is to be compared: run files, methods put into them, and settings of a grid; and whether that can be compared.

Numbers stand beside each other only where they say the same of the same rows. Task, classes, columns and the metric
must agree; whose rows are measured must agree, too, unless the runs are measured on one file of the operator's.
"""

from __future__ import annotations

import itertools
import re
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fedsplit.cli.chosen_method import options_from, with_method
from fedsplit.cli.compare_record import Variant
from fedsplit.cli.gathered import Gathered
from fedsplit.config.check import METRICS
from fedsplit.config.load import as_toml, load, validated
from fedsplit.config.run import DataSection, RunFile
from fedsplit.data.partition import digest
from fedsplit.errors import ConfigError, Problem
from fedsplit.exchange.selection import HIGHER_IS_BETTER, metric_of
from fedsplit.method.of_run import method_of

ALSO = {"lr": "learning_rate"}
"""What papers call our keys."""
MOST_RUNS = 1000
COLUMNS = tuple(key for key in DataSection.__struct_fields__ if key != "eval_fraction")


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A variant and its run file, paths absolute; seed and folder are set for each run."""

    variant: Variant
    run: RunFile


def candidates(
    files: Sequence[Path], methods: Sequence[str], options: Sequence[str], grid: Sequence[str]
) -> list[Candidate]:
    """Every run file, with every method in place of its own, with every setting of the grid.

    ``options``: ``METHOD.KEY=VALUE`` for one method, ``KEY=VALUE`` for all. ``grid``: ``SECTION.KEY=V1,V2``;
    ``method.KEY`` is an option of the method.

    :raises ConfigError: everything that is wrong with any of them.
    """
    _refuse_twice("RUNS", [str(file.resolve()) for file in files])
    runs, gathered = {file: load(file) for file in files}, Gathered()
    settings, found = list(_settings(grid)), []
    for file, method in itertools.product(runs, methods or [""]):
        group = _group(file, files, method)
        own = _options_for(method, options, methods)
        for values in settings:
            name = " ".join([group, *(f"{_brief(key, values)}={value}" for key, value in values.items())])
            run = gathered.take(name, partial(_resolved, runs[file], method, own, values))
            if run is not None:
                variant = Variant(name=name, source=str(file), method=run.method.name, group=group, settings=values)
                found.append(Candidate(variant=variant, run=run))
    gathered.refuse()
    _refuse_equal_names([one.variant.name for one in found])
    return found


def check_comparable(some: Sequence[Candidate], test: str) -> None:
    """Refuse runs whose numbers say different things. ``test``: the file they are all measured on; empty: none.

    :raises ConfigError: names what differs, and between which.
    """
    problems = [problem for other in some[1:] for problem in _differences(some[0], other, test)]
    problems += [problem for one in some for problem in _unmeasured(one, test)]
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))


def metric_for(some: Sequence[Candidate], asked: str) -> str:
    """The metric that is compared: ``asked``, else the runs' own.

    :raises ConfigError: no task has ``asked``, or that of the runs has not; run files choose by different ones.
    """
    if asked:
        if asked not in HIGHER_IS_BETTER:
            raise ConfigError([Problem("--metric", repr(asked), f"one of {', '.join(HIGHER_IS_BETTER)}")])
        for task in sorted({one.run.model.task for one in some}):
            if asked not in METRICS[task]:
                fix = "name another with --metric, or in --target"
                raise ConfigError(
                    [Problem("metric", repr(asked), f"one of {', '.join(METRICS[task])} for {task}", fix)]
                )
        return asked
    found = {metric_of(one.run.model.task, one.run.evaluate.metric): one for one in some}
    if len(found) > 1:
        (first, a), (second, b) = list(found.items())[:2]
        between = f"{first!r} in {a.variant.name}, {second!r} in {b.variant.name}"
        raise ConfigError([Problem("evaluate.metric", between, "one metric", "say which with --metric")])
    return next(iter(found))


def methods_of(text: str | None) -> list[str]:
    """The names in ``"a,b"``; none where nobody asked. Raises ConfigError."""
    names = [word.strip() for word in (text or "").split(",") if word.strip()]
    if text is not None and not names:
        fix = "leave it out for the run file's own method"
        raise ConfigError([Problem("--methods", repr(text), "names of methods, as in fedavg,flora", fix)])
    _refuse_twice("--methods", names)
    return names


def seeds_of(text: str, start: int = 0) -> tuple[int, ...]:
    """``"3"``: three seeds from ``start`` on; ``"1,5,7"``: these. Raises ConfigError."""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() for word in words if word) or not any(words):
        raise ConfigError([Problem("--seeds", repr(text), "how many, as in 3, or which, as in 0,1,5")])
    numbers = [int(word) for word in words if word]
    _refuse_twice("--seeds", [str(number) for number in numbers])
    found = tuple(range(start, start + numbers[0])) if "," not in text else tuple(numbers)
    if not 1 <= len(found) <= MOST_RUNS:
        raise ConfigError([Problem("--seeds", repr(text), f"1 to {MOST_RUNS} of them")])
    return found


def measured_on(run: RunFile) -> str:
    """Whose rows the metric of this run is on, in words."""
    if run.server_data.path:
        return "the operator's validation rows"
    return f"the {100 * run.data.eval_fraction:g} % of their rows that clients hold back"


def slug(name: str) -> str:
    """A folder's name for a variant."""
    return re.sub(r"[^A-Za-z0-9._=-]+", "-", name).strip("-.")


def _brief(key: str, keys: Iterable[str]) -> str:
    """The key without its section, where that is enough."""
    name = key.partition(".")[2]
    return key if sum(one.partition(".")[2] == name for one in keys) > 1 else name


def _resolved(run: RunFile, method: str, options: Sequence[str], settings: dict[str, object]) -> RunFile:
    run = with_method(run, method, options)
    if settings:
        document = tomllib.loads(as_toml(run))
        for key, value in settings.items():
            section, _, name = key.partition(".")
            place = document["method"]["options"] if section == "method" else document[section]
            place[name] = value
        run = validated(document, "--grid")
    method_of(run)
    return run


def _settings(grid: Sequence[str]) -> Iterator[dict[str, object]]:
    """Every combination of the grid; one empty setting without a grid."""
    axes: dict[str, list[object]] = {}
    problems = []
    for text in grid:
        key, equals, values = (part.strip() for part in text.partition("="))
        section, dot, name = key.partition(".")
        key = f"{section}.{ALSO.get(name, name)}"
        some = [_value(word.strip()) for word in values.split(",") if word.strip()]
        if not (equals and dot and name and some) or section not in RunFile.__struct_fields__ or section == "clients":
            sections = ", ".join(field for field in RunFile.__struct_fields__ if field != "clients")
            fix = f"e.g. --grid train.learning_rate=1e-3,3e-3; sections are {sections}"
            problems.append(Problem("--grid", repr(text), "SECTION.KEY=VALUE,VALUE", fix))
        elif key in axes:
            problems.append(Problem("--grid", f"{key} twice", "every key once"))
        elif len(set(some)) < len(some):
            problems.append(Problem("--grid", f"{text!r}, a value twice", "every value once"))
        else:
            axes[key] = some
    if problems:
        raise ConfigError(problems)
    for chosen in itertools.product(*axes.values()):
        yield dict(zip(axes, chosen, strict=True))


def _value(text: str) -> object:
    try:
        value: object = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
    return value


def _group(file: Path, files: Sequence[Path], method: str) -> str:
    stems = [one.stem for one in files]
    # Files of one name in several folders go by both.
    stem = file.stem if stems.count(file.stem) == 1 else "/".join(file.resolve().with_suffix("").parts[-2:])
    if not method:
        return stem
    return method if len(files) == 1 else f"{stem} {method}"


def _options_for(method: str, options: Sequence[str], methods: Sequence[str]) -> list[str]:
    """Those for everybody, and those for this method. Raises ConfigError for a method that is not compared."""
    options_from(options)
    own: list[str] = []
    for text in options:
        key = text.partition("=")[0]
        whose, dot, _ = key.rpartition(".")
        if not dot:
            own.append(text)
        elif whose == method:
            own.append(text.removeprefix(f"{whose}."))
        elif whose not in methods:
            known = f"one of {', '.join(methods)}" if methods else "KEY=VALUE, or --methods"
            raise ConfigError([Problem("--set", repr(text), known, "its method is not compared")])
    return own


def _refuse_twice(where: str, words: Sequence[str]) -> None:
    if twice := [word for word in dict.fromkeys(words) if words.count(word) > 1]:
        raise ConfigError([Problem(where, f"{word} {words.count(word)} times", "each once") for word in twice])


def _refuse_equal_names(names: Iterable[str]) -> None:
    seen: dict[str, str] = {}
    for name in names:
        if slug(name) in seen:
            fix = "rename a file, or name each once"
            raise ConfigError([Problem("RUNS", f"{seen[slug(name)]!r} and {name!r}", "different names", fix)])
        seen[slug(name)] = name


def _differences(first: Candidate, other: Candidate, test: str) -> Iterator[Problem]:
    a, b = first.run, other.run
    fix = "they would measure different things"
    same: list[tuple[str, object, object, str]] = [
        ("model.task", a.model.task, b.model.task, fix),
        ("model.labels", a.model.labels, b.model.labels, fix),
        *((f"data.{key}", getattr(a.data, key), getattr(b.data, key), fix) for key in COLUMNS),
    ]
    if a.model.task == "causal-lm":
        why = "a perplexity is of one tokenizer and one length of text"
        same.append(("model.path", a.model.path, b.model.path, why))
        same.append(("model.max_length", a.model.max_length, b.model.max_length, why))
    for key, one, two, reason in same:
        if one != two:
            yield _unlike(key, first, one, other, two, reason)
    # Chosen checkpoints are then compared on one file, however the rows are spread over clients.
    if test or (a.server_data.path and a.server_data.path == b.server_data.path):
        return
    if a.server_data.path != b.server_data.path:
        yield _unlike("server_data.path", first, a.server_data.path, other, b.server_data.path, fix)
    elif a.data.eval_fraction != b.data.eval_fraction:
        yield _unlike("data.eval_fraction", first, a.data.eval_fraction, other, b.data.eval_fraction, fix)
    elif _rows(a) != _rows(b):
        fix = "each would be measured on other rows; name one file for all with --test"
        yield _unlike("clients.data", first, _names(a), other, _names(b), fix)


def _unlike(key: str, first: Candidate, one: object, other: Candidate, two: object, fix: str) -> Problem:
    between = f"{_short(one)} in {first.variant.name}, {_short(two)} in {other.variant.name}"
    return Problem(key, between, "the same in all runs", fix)


def _unmeasured(one: Candidate, test: str) -> Iterator[Problem]:
    run = one.run
    measured = run.server_data.path or (run.evaluate.clients and run.data.eval_fraction > 0)
    if not (measured or test):
        fix = "set evaluate.clients and data.eval_fraction, or server_data.path, or give --test"
        yield Problem("evaluate", f"nobody who measures in {one.variant.name}", "a metric to compare", fix)


def _rows(run: RunFile) -> list[tuple[str, str]]:
    """The content of every client's file: a copy elsewhere is the same."""
    return sorted((one.name, digest(Path(one.data)) if Path(one.data).exists() else one.data) for one in run.clients)


def _names(run: RunFile) -> str:
    return ", ".join(f"{one.name}: {Path(one.data).name}" for one in run.clients) or "no clients"


def _short(value: object) -> str:
    text = repr(value) if value else "nothing"
    return text if len(text) < 80 else f"{text[:76]}…"
