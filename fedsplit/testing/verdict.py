"""A method before the laws: which bind it, which hold, and where the method's own code failed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath

from fedsplit.method.own_code import FAILURES, line_in
from fedsplit.method.record import Method, Phases
from fedsplit.testing.laws import LAWS, Broken, Law
from fedsplit.testing.rounds import Case


@dataclass(frozen=True)
class Verdict:
    """One law and one method. ``broken``: what was found instead, with ``FILE:LINE`` where its code raised; empty: the
    law holds. ``bound`` False: the law is not about this method."""

    law: str
    bound: bool
    broken: str = ""


def judge(name: str, method: Method | Phases, file: str = "") -> tuple[Verdict, ...]:
    """Every law on ``method``; each phase is judged as if it were the first. ``file``: where its code is written."""
    starts = zip(method.starts, method.methods, strict=True) if isinstance(method, Phases) else ((0, method),)
    cases = [Case(name if not start else f"{name} from round {start}", phase) for start, phase in starts]
    return tuple(_verdict(one, cases, file) for one in LAWS)


def _verdict(law: Law, cases: list[Case], file: str) -> Verdict:
    bound = [case for case in cases if law.binds(case)]
    found = [(case, _broken(law, case, file)) for case in bound]
    said = [f"{case}: {text}" if len(cases) > 1 else text for case, text in found if text]
    return Verdict(law.text, bool(bound), "; ".join(said))


def _broken(law: Law, case: Case, file: str) -> str:
    try:
        law.holds(case)
    except Broken as error:
        return str(error)
    except FAILURES as error:
        return f"{type(error).__name__}: {error}{_place(error, file)}"
    return ""


def _place(error: BaseException, file: str) -> str:
    line = line_in(file, error)
    return f" ({PurePath(file).name}:{line})" if line else ""
