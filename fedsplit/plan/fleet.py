"""How the clients of a round share the server: the shares with which the slowest client is as fast as possible.

Candidate j of client k takes ``o_kj`` seconds of its own (device, link, latency) and ``s_kj`` seconds of the whole
server; with a share φ_k it is done after ``o_kj + s_kj / φ_k``. All are done by τ exactly when

    Σ_k  min_j  s_kj / (τ - o_kj)  ≤  1,

a sum that falls as τ grows: bisection on τ is exact, the discrete choice included (FedsLLM, arXiv 2407.09250, has the
continuous case: at the optimum all clients that use the server finish together). Candidates with bodies of the same
length and topology are merged into their smallest o and smallest s first; the τ of that easier problem is a certified
lower bound, and equal to the optimum unless memory forces other micro-batches on some of them. Where the server's
profile has a link, that is shared out too (``shared_link``). Shape letters: K clients (equal ones once, counted n
times), G groups of candidates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from fedsplit.plan.grid import Floats, Grid, Ints
from fedsplit.plan.prices import Block, Shelf
from fedsplit.plan.question import Question, alike, server_of
from fedsplit.plan.shared_link import Demand, Split, divide_both
from fedsplit.plan.timing import ASSUMED_LINK

Shelves = dict[bytes, Shelf]
"""By kind of client (``question.alike``)."""

HALVINGS = 40
TOLERANCE = 1e-6
MOST_COMPARED = 1000
"""Different devices up to which the shares are compared with equal ones."""


@dataclass(frozen=True, kw_only=True)
class Shares:
    """``bound_s``: no plan makes the slowest step shorter; ``share_K``: of the server, together at most all of it."""

    bound_s: float
    share_K: Floats


def divide(own_KG: Floats, server_KG: Floats, count_K: Ints, total: float = 1.0) -> Shares:
    """Shares of ``total`` server that make the largest step time smallest.

    ``own_KG``: seconds without the server, ``server_KG``: seconds of the whole server; both infinite where nothing
    fits. ``count_K``: how many clients a row stands for. Every row has a finite candidate. What nobody needs is
    divided equally.
    """
    clients = int(count_K.sum())
    low = float((own_KG + server_KG / total).min(axis=1).max())
    high = float((own_KG + server_KG * clients / total).min(axis=1).max())
    if _needs(low, own_KG, server_KG) @ count_K <= total:
        high = low
    for _ in range(HALVINGS):
        if high - low <= TOLERANCE * high:
            break
        middle = (low + high) / 2
        if _needs(middle, own_KG, server_KG) @ count_K <= total:
            high = middle
        else:
            low = middle
    need_K = _needs(high, own_KG, server_KG)
    # At the upper end an equal share is enough for everybody; rounding alone could say otherwise.
    need_K = np.minimum(need_K, total) if clients == 1 else need_K
    spare = max(0.0, total - float(need_K @ count_K)) / clients
    return Shares(bound_s=low, share_K=np.maximum(need_K + spare, _LEAST * total / clients))


_LEAST = 1e-6
"""A client without need keeps this part of an equal share, so that its other candidates have a price."""


def _needs(deadline: float, own_KG: Floats, server_KG: Floats) -> Floats:
    """The smallest share with which each client is done by ``deadline``; infinite if none is enough."""
    left = deadline - own_KG
    with np.errstate(divide="ignore", invalid="ignore"):
        need = np.where(left > 0, server_KG / left, np.inf)
    need = np.where((server_KG == 0) & (left >= 0), 0.0, need)
    found: Floats = need.min(axis=1)
    return found


def balanced(asked: Mapping[str, Question]) -> dict[str, Question]:
    """The questions, each with its share of the server (``balance``)."""
    return balance(asked)[0]


def balance(asked: Mapping[str, Question], shelves: Shelves | None = None) -> tuple[dict[str, Question], float]:
    """(the questions with the shares of the server that make the slowest step fastest, the lower bound of that step).

    Clients that are expected but not here yet keep an equal share each; so does one that has no plan at all. The bound
    is 0 where there is nothing to divide: all clients are alike, or none has a plan. ``shelves``: of these questions,
    for whoever plans them next.
    """
    kinds = rows_of(asked)
    shelves = {} if shelves is None else shelves
    if sum(map(len, kinds.values())) < 2:
        return dict(asked), 0.0
    seconds, owners = _merged(asked, kinds, shelves)
    if not owners:
        return dict(asked), 0.0
    found = divided(seconds, owners, asked)
    shared = with_shares(asked, owners, found)
    # Shares are found for micro-batches one after the other; overlapping ones may be better off with equal ones.
    overlap = next(iter(asked.values())).run.plan.overlap
    if overlap and len(owners) <= MOST_COMPARED:
        equal_s = _slowest(asked, kinds, shelves)
        # The last ones priced are kept for the plans: most often these.
        shared = dict(asked) if equal_s < _slowest(shared, kinds, shelves) else shared
    return shared, found.bound_s


def _slowest(asked: Mapping[str, Question], kinds: Mapping[bytes, Sequence[list[str]]], shelves: Shelves) -> float:
    """The slowest step where everybody takes the fastest plan; clients without one do not count."""
    slowest = 0.0
    for kind, members in kinds.items():
        shelf = _shelf(shelves, kind, asked[members[0][0]])
        blocks = list(shelf.blocks([asked[names[0]] for names in members])) if shelf.grid.chosen else []
        shelf.keep(blocks)
        for _, block in blocks:
            fastest = np.where(block.usable_KO, block.seconds.total_KO, np.inf).min(axis=1)
            slowest = max(slowest, float(fastest[np.isfinite(fastest)].max(initial=0.0)))
    return slowest


def _shelf(shelves: Shelves, kind: bytes, question: Question) -> Shelf:
    if kind not in shelves:
        shelves[kind] = Shelf(question=question)
    return shelves[kind]


def rows_of(asked: Mapping[str, Question]) -> dict[bytes, list[list[str]]]:
    """Equal clients together (a row), the rows of a kind together (``question.alike``)."""
    rows: dict[tuple[bytes, bytes], list[str]] = {}
    for name, question in asked.items():
        rows.setdefault(alike(question), []).append(name)
    kinds: dict[bytes, list[list[str]]] = {}
    for (kind, _), names in rows.items():
        kinds.setdefault(kind, []).append(names)
    return kinds


def with_shares(
    asked: Mapping[str, Question], owners: Sequence[Sequence[str]], found: Shares | Split
) -> dict[str, Question]:
    """The questions with their row's shares; those of no row stay as they are."""
    link_K = found.link_K.tolist() if isinstance(found, Split) else [None] * len(owners)
    given = {
        name: (share, link)
        for names, share, link in zip(owners, found.share_K.tolist(), link_K, strict=True)
        for name in names
    }
    changed = dict(asked)
    for name, (share, link) in given.items():
        question = asked[name]
        changed[name] = replace(question, share=share, link_share=question.link_share if link is None else link)
    return changed


def divided(
    seconds: Sequence[Floats], owners: Sequence[Sequence[str]], asked: Mapping[str, Question]
) -> Shares | Split:
    """Shares for the rows of ``owners``; ``seconds``: as ``seconds_of`` gives them, infinite where nothing fits."""
    count = np.array([len(names) for names in owners], dtype=np.int64)
    first = next(iter(asked.values()))
    total, theirs = min(1.0, int(count.sum()) / first.clients), server_of(first).link
    if theirs is None:
        own, server = seconds
        return divide(own, server, count, total)
    own, server, up, down = seconds
    links = [asked[names[0]].device.link or ASSUMED_LINK for names in owners]
    near = np.array([(link.up_bps / theirs.down_bps, link.down_bps / theirs.up_bps) for link in links])
    demand = Demand(own_KG=own, server_KG=server, up_KG=up, down_KG=down, near_K2=near, count_K=count)
    return divide_both(demand, total)


def _merged(
    asked: Mapping[str, Question], kinds: Mapping[bytes, Sequence[list[str]]], shelves: Shelves
) -> tuple[list[Floats], list[list[str]]]:
    """(what ``seconds_of`` says of each row and group, clients of each row) of all that have a plan."""
    found: list[list[Floats]] = []
    owners: list[list[str]] = []
    for kind, members in kinds.items():
        shelf = _shelf(shelves, kind, asked[members[0][0]])
        if not shelf.grid.chosen:
            continue
        order, starts = groups(shelf.grid)
        waiting = iter(members)
        for some, block in shelf.blocks([asked[names[0]] for names in members], serial=True):
            fits = np.asarray(block.fits_KO.any(axis=1))
            usable = (np.where(block.fits_KO, one, np.inf)[:, order] for one in seconds_of(shelf.grid, some, block))
            found.append([np.minimum.reduceat(one, starts, axis=1)[fits] for one in usable])
            owners += [names for names, fit in zip(islice(waiting, len(some)), fits.tolist(), strict=True) if fit]
    return [_stacked(parts) for parts in zip(*found, strict=True)], owners


def unserved(block: Block) -> Floats:
    """Seconds of each candidate without the server's work."""
    found = block.seconds
    total: Floats = found.device_KO + found.up_KO + found.down_KO + found.latency_KO
    return total


def seconds_of(grid: Grid, some: Sequence[Question], block: Block) -> tuple[Floats, ...]:
    """Of each candidate: seconds on its own, of the whole server, and on the server's whole link up and down."""
    found = block.seconds
    server = found.server_KO * np.array([question.share for question in some])[:, None]
    own, link = found.device_KO + found.latency_KO, server_of(some[0]).link
    if link is None:
        return own + found.up_KO + found.down_KO, server
    up, down = (np.broadcast_to(count, own.shape) for count in grid.bytes_O)
    return own, server, up / link.down_bps, down / link.up_bps


def groups(grid: Grid) -> tuple[Ints, Ints]:
    """(candidates in the order of topology and length of body, where each group starts)."""
    topology = np.array([list(type(one)).index(one) for one, _ in grid.chosen])
    label = topology * (grid.works[0].card.num_layers + 1) + grid.body.count_O
    order = np.argsort(label, kind="stable")
    starts = np.flatnonzero(np.diff(label[order], prepend=-1))
    return order, starts


def _stacked(parts: Sequence[Floats]) -> Floats:
    """Rows of unequal width below one another."""
    width = max((part.shape[1] for part in parts), default=0)
    padded = [np.pad(part, ((0, 0), (0, width - part.shape[1])), constant_values=np.inf) for part in parts]
    return np.concatenate(padded) if padded else np.empty((0, 0))
