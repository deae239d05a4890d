"""Conversations as one text, with the places where the answers stand.

The text is rendered with the model's own chat template (Jinja, in the sandbox and with the settings transformers
uses). The loss is taken on what the template adds for an answer, its end mark included, never on what leads up to it.
"""

from __future__ import annotations

import functools
import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from fedsplit.errors import ConfigError, MissingExtra

Message = Mapping[str, Any]
Span = tuple[int, int]
Render = Callable[[Sequence[Message], bool], str]
"""(messages, answer_next) -> text; with ``answer_next`` the text ends where the model starts to answer."""

_PLAIN_ROLES = {"system": "System", "user": "User", "assistant": "Assistant", "tool": "Tool"}


def plain(messages: Sequence[Message], answer_next: bool, eos: str = "") -> str:
    """The rendering for a tokenizer without a template: ``User: …``, ``Assistant: …``, answers end with ``eos``."""
    parts = []
    for one in messages:
        end = eos if one["role"] == "assistant" else ""
        parts.append(f"{_PLAIN_ROLES[one['role']]}: {one['content'].strip()}{end}\n")
    return "".join(parts) + ("Assistant:" if answer_next else "")


def from_template(template: str, special: Mapping[str, str]) -> Render:
    """A renderer for a model's chat template; ``special`` holds ``bos_token``, ``eos_token`` and so on.

    :raises MissingExtra: without jinja2.
    :raises ConfigError: when the template is broken or refuses a conversation.
    """
    compiled = _compile(template)

    def render(messages: Sequence[Message], answer_next: bool) -> str:
        try:
            text = compiled.render(
                messages=[dict(one) for one in messages], add_generation_prompt=answer_next, **special
            )
        except Exception as error:  # Whatever a template from elsewhere raises, it is the template's refusal.
            raise ConfigError(f"the model's chat template refused the conversation: {error}") from None
        return str(text)

    return render


@functools.lru_cache(maxsize=8)
def _compile(template: str) -> Any:
    try:
        jinja2 = importlib.import_module("jinja2")
        sandbox = importlib.import_module("jinja2.sandbox")
        extensions = importlib.import_module("jinja2.ext")
    except ImportError:
        raise MissingExtra("jinja2, which the model's chat template needs,", "data") from None

    class Generation(extensions.Extension):  # type: ignore[misc, name-defined]  # jinja2 is imported at run time
        """``{% generation %}`` marks answers for transformers; here its content simply stands."""

        tags = {"generation"}  # noqa: RUF012  # the form jinja2 asks for

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(["name:endgeneration"], drop_needle=True)

    environment = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, extensions.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    try:
        return environment.from_string(template)
    except jinja2.TemplateSyntaxError as error:
        raise ConfigError(f"the model's chat template is broken at line {error.lineno}: {error.message}") from None


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _refuse(message: str) -> None:
    raise ValueError(message)


def answers(messages: Sequence[Message], render: Render) -> tuple[str, list[Span]]:
    """The whole conversation and the character spans on which the loss is taken.

    An answer's span runs from where the model is asked to where the next message starts. Where a template writes
    earlier turns differently once they are past (dropped thoughts), the answer is looked for by its own words.
    """
    text = render(messages, False)
    spans: list[Span] = []
    for i, one in enumerate(messages):
        if one["role"] != "assistant":
            continue
        asked, told = render(messages[:i], True) if i else "", render(messages[: i + 1], False)
        if text.startswith(told) and told.startswith(asked):
            spans.append((len(asked), len(told)))
            continue
        start = text.find(one["content"].strip(), spans[-1][1] if spans else 0)
        if start >= 0:
            spans.append((start, start + len(one["content"].strip())))
    return text, spans
