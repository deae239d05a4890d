"""The rules of a run file that one value alone cannot break: ranges, and values that contradict each other.

Each rule is a generator of problems over one section or a few; ``check`` runs them all, so a person sees everything
that is wrong at once. What needs the model, the data or the devices is checked where those are known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from fedsplit.config import policy
from fedsplit.config.name import NAME, RULE
from fedsplit.config.run import RunFile
from fedsplit.config.shape import found
from fedsplit.errors import Problem

METRICS: dict[str, tuple[str, ...]] = {
    "causal-lm": ("perplexity", "loss"),
    "classification": ("accuracy", "macro_f1", "loss"),
    "image-classification": ("accuracy", "macro_f1", "loss"),
    "regression": ("mse", "pearson", "loss"),
}
"""Which metrics can choose a checkpoint, the default first."""

Rule = Callable[[RunFile], Iterator[Problem]]


def check(run: RunFile) -> list[Problem]:
    """Every broken rule of ``run``; empty if there is none."""
    rules: tuple[Rule, ...] = (_ranges, _names, _model, _data, _train, _rounds, policy.policy, _evaluate, _clients)
    return [problem for rule in rules for problem in rule(run)]


def at_least(lowest: float) -> tuple[Callable[[float], bool], str]:
    return (lambda value: value >= lowest), f"at least {lowest:g}"


def above(limit: float) -> tuple[Callable[[float], bool], str]:
    return (lambda value: value > limit), f"more than {limit:g}"


def within(lowest: float, limit: float) -> tuple[Callable[[float], bool], str]:
    return (lambda value: lowest <= value < limit), f"at least {lowest:g} and less than {limit:g}"


RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    "run.seed": within(0, 2**63),
    "model.max_length": at_least(2),
    "lora.rank": at_least(1),
    "lora.alpha": above(0),
    "lora.dropout": within(0, 1),
    "data.eval_fraction": within(0, 1),
    "train.rounds": at_least(1),
    "train.steps": at_least(1),
    "train.batch": at_least(1),
    "train.micro_batches": at_least(1),
    "train.learning_rate": above(0),
    "train.weight_decay": at_least(0),
    "train.momentum": within(0, 1),
    "train.clip": at_least(0),
    "train.warmup_steps": at_least(0),
    "rounds.clients": at_least(0),
    "rounds.quorum": at_least(0),
    "rounds.deadline_s": above(0),
    "rounds.participation": ((lambda value: 0 < value <= 1), "more than 0 and at most 1"),
    "rounds.patience_s": above(0),
    "server.port": within(0, 65536),
    "server.stash_bytes": at_least(1),
    "policy.min_front": at_least(0),
    "policy.min_rank": at_least(1),
    "plan.coverage": at_least(0),
    "policy.min_wire_bits": at_least(0),
    "policy.max_server_bytes": at_least(0),
    "policy.round_s": at_least(0),
    "evaluate.every": at_least(0),
    "evaluate.patience": at_least(0),
    "evaluate.batch": at_least(1),
}
"""The interval of every number; NaN and infinity are refused for all of them."""


def _ranges(run: RunFile) -> Iterator[Problem]:
    for path, (fits, words) in RANGES.items():
        section, key = path.split(".")
        value = getattr(getattr(run, section), key)
        if not math.isfinite(value) or not fits(value):
            yield Problem(path, found(value), words)


def _names(run: RunFile) -> Iterator[Problem]:
    if not NAME.fullmatch(run.run.name):
        yield Problem("run.name", found(run.run.name), RULE)
    texts = {"model.path": run.model.path, "server.host": run.server.host, "method.name": run.method.name}
    for path, value in texts.items():
        if not value.strip():
            yield Problem(path, "an empty text", "a name or a path")
    for i, target in enumerate(run.lora.targets):
        if not target.strip() or target in run.lora.targets[:i]:
            yield Problem(f"lora.targets[{i}]", found(target), "a module name that is not in the list yet")


def _model(run: RunFile) -> Iterator[Problem]:
    model, classifies = run.model, run.model.task.endswith("classification")
    if classifies and len(model.labels) < 2:
        fix = 'name the classes in the order of their ids: labels = ["no", "yes"]'
        yield Problem("model.labels", f"{len(model.labels)} labels", f"at least 2 for {model.task}", fix)
    if not classifies and model.labels:
        fix = 'remove them, or set model.task = "classification"'
        yield Problem("model.labels", f"{len(model.labels)} labels", f"none for {model.task}", fix)
    for i, label in enumerate(model.labels):
        if label in model.labels[:i]:
            yield Problem(f"model.labels[{i}]", found(label), "every class once", "remove the repetition")
        elif not label.strip():
            yield Problem(f"model.labels[{i}]", "an empty text", "the name of a class")
    if model.task == "causal-lm" and model.head != "fedavg":
        fix = "leave it out: a language model's head is not trained"
        yield Problem("model.head", found(model.head), '"fedavg" for causal-lm', fix)


def _data(run: RunFile) -> Iterator[Problem]:
    data, task = run.data, run.model.task
    usable = {
        "causal-lm": {"text", "prompt", "completion", "messages"},
        "classification": {"text", "text_pair", "label"},
        "regression": {"text", "text_pair", "label"},
        "image-classification": {"image", "label"},
    }[task]
    for key in ("text", "text_pair", "label", "prompt", "completion", "messages", "image"):
        if getattr(data, key) and key not in usable:
            yield Problem(f"data.{key}", found(getattr(data, key)), f"no such column for {task}", "remove it")
    if task == "causal-lm":
        for one, other in (("prompt", "completion"), ("completion", "prompt")):
            if getattr(data, one) and not getattr(data, other):
                yield Problem(f"data.{other}", "nothing", f"a column, because data.{one} is given")
        chosen = [key for key in ("text", "prompt", "messages") if getattr(data, key)]
        if len(chosen) > 1:
            words = " and ".join(f"data.{key}" for key in chosen)
            yield Problem("data", words, "one of text, prompt with completion, messages", "keep one of them")
    if data.long == "split" and task != "causal-lm":
        yield Problem("data.long", '"split"', f'"cut" for {task}: a piece of a text has no label of its own')
    if data.text_pair and data.text_pair == data.text:
        yield Problem("data.text_pair", found(data.text_pair), "another column than data.text")


def _train(run: RunFile) -> Iterator[Problem]:
    train = run.train
    if train.batch >= 1 and train.micro_batches >= 1 and train.batch % train.micro_batches:
        fix = f"take one of {', '.join(map(str, _divisors(train.batch)))}, or another batch"
        yield Problem("train.micro_batches", str(train.micro_batches), f"a divisor of train.batch = {train.batch}", fix)
    if train.momentum and train.optimizer != "sgd":
        fix = 'remove it, or set train.optimizer = "sgd"'
        yield Problem("train.momentum", found(train.momentum), f'0 with train.optimizer = "{train.optimizer}"', fix)
    total = train.rounds * train.steps
    if train.warmup_steps > total > 0:
        words = f"at most train.rounds × train.steps = {total}"
        yield Problem("train.warmup_steps", str(train.warmup_steps), words)


def _rounds(run: RunFile) -> Iterator[Problem]:
    rounds = run.rounds
    drawn = max(1, math.floor(rounds.participation * rounds.clients)) if 0 < rounds.participation <= 1 else 0
    if rounds.quorum > rounds.clients:
        fix = f"lower it to {rounds.clients} or raise rounds.clients"
        yield Problem("rounds.quorum", str(rounds.quorum), f"at most rounds.clients = {rounds.clients}", fix)
    elif drawn and rounds.quorum > drawn:
        words = f"at most {drawn}: rounds.participation = {rounds.participation:g} draws {drawn} of {rounds.clients}"
        yield Problem("rounds.quorum", str(rounds.quorum), words, "no round could ever be committed")


def _evaluate(run: RunFile) -> Iterator[Problem]:
    evaluate = run.evaluate
    metrics = METRICS[run.model.task]
    if evaluate.metric and evaluate.metric not in metrics:
        yield Problem("evaluate.metric", found(evaluate.metric), f"one of {', '.join(metrics)} for {run.model.task}")
    if evaluate.patience and not evaluate.every:
        fix = "set evaluate.every = 1"
        yield Problem("evaluate.patience", str(evaluate.patience), "0 when evaluate.every is 0", fix)
    measured = run.server_data.path or (evaluate.clients and run.data.eval_fraction > 0)
    if (evaluate.patience or evaluate.metric) and not measured:
        key = "patience" if evaluate.patience else "metric"
        fix = "set server_data.path, or evaluate.clients = true with data.eval_fraction above 0"
        yield Problem(f"evaluate.{key}", found(getattr(evaluate, key)), "somebody who measures", fix)


def _clients(run: RunFile) -> Iterator[Problem]:
    names = [client.name for client in run.clients]
    for i, client in enumerate(run.clients):
        path = f"clients[{i}]"
        if client.name and client.name in names[:i]:
            first = names.index(client.name)
            words = f"a name that clients[{first}] does not have"
            yield Problem(f"{path}.name", found(client.name), words, "rename one of them")
        elif not NAME.fullmatch(client.name):
            yield Problem(f"{path}.name", found(client.name), RULE)
        if client.tag and not NAME.fullmatch(client.tag):
            yield Problem(f"{path}.tag", found(client.tag), RULE)
        for key in ("batch", "threads"):
            if getattr(client, key) < 0:
                yield Problem(f"{path}.{key}", str(getattr(client, key)), "0 or more")
        if client.batch > 0 and run.train.micro_batches > 0 and client.batch % run.train.micro_batches:
            words = f"a multiple of train.micro_batches = {run.train.micro_batches}"
            yield Problem(f"{path}.batch", str(client.batch), words)
        yield from policy.client(run, client, path)


def _divisors(number: int) -> list[int]:
    return [one for one in range(1, min(number, 4096) + 1) if number % one == 0]
