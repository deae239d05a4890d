"""Who may join, and with which job: Hello → Welcome or Refuse, Accept → ready."""

from __future__ import annotations

import hmac
import math
from collections.abc import Callable
from pathlib import PurePath

import msgspec

from fedsplit import assets
from fedsplit.config.name import NAME, RULE
from fedsplit.config.run import RunFile, ServerDataSection, ServerSection
from fedsplit.devices.load import from_dict
from fedsplit.devices.profile import DeviceProfile
from fedsplit.errors import ConfigError, FedsplitError, PlanError
from fedsplit.plan.types import ClientPlan, Topology
from fedsplit.probe.runtime import EDGE_BYTES
from fedsplit.wire.messages import Asset, DataSummary, Hello, Refuse, Waiting, Welcome
from fedsplit_server.graphs import Preparing
from fedsplit_server.roster import Member, Roster

TORCH, EDGE = "torch", "edge"
"""What a client computes with."""
SILENT_S = 10.0
"""A client unheard of for this long may be replaced by another connection under the same name and key."""

Files = Callable[[ClientPlan, str], tuple[Asset, ...]]
"""(plan, backend of the client) → what it has to download. Raises Preparing while that is made."""
Planner = Callable[[str, DeviceProfile, DataSummary, str], ClientPlan]
"""(name, profile, data, topology the owner insists on or "") → plan; raises PlanError where nothing fits."""


def public(run: RunFile, client: str) -> RunFile:
    """The run file as ``client`` may see it: what it trains, nothing about the operator's folders or other clients."""
    change = msgspec.structs.replace
    own = tuple(change(one, data="", device="") for one in run.clients if one.name == client)
    phases = tuple(change(one, name=PurePath(one.name).name) for one in run.method.phases)
    path = run.model.path if run.model.path in assets.NAMES else PurePath(run.model.path).name
    return change(
        run,
        run=change(run.run, dir=""),
        model=change(run.model, path=path),
        server=ServerSection(adapters=run.server.adapters, curve=run.server.curve),
        server_data=ServerDataSection(),
        method=change(run.method, name=PurePath(run.method.name).name, phases=phases),
        clients=own,
    )


def _tag(run: RunFile, client: str) -> str:
    """What the operator says that this client's data is."""
    return next((one.tag for one in run.clients if one.name == client), "")


def impossible(hello: Hello) -> str:
    """What no device can truthfully say: the planner is only asked about values that can be."""
    if hello.backend not in (TORCH, EDGE):
        return f"found backend {hello.backend!r}, expected {TORCH} or {EDGE}"
    if hello.topology not in ("", *Topology):
        return f"found topology {hello.topology!r}, expected one of {', '.join(Topology)}"
    if hello.tag and not NAME.fullmatch(hello.tag):
        return f"found tag {hello.tag!r}, expected {RULE}"
    data = hello.data
    if data is not None and not (math.isfinite(data.tokens_mean) and data.tokens_mean >= 0):
        return f"found tokens_mean = {data.tokens_mean}, expected a number, 0 or more"
    raw = msgspec.to_builtins(hello.profile)
    try:
        from_dict({key: value for key, value in raw.items() if value is not None}, "the device's profile")
    except ConfigError as error:
        return str(error)
    return ""


def on_edge(profile: DeviceProfile) -> DeviceProfile:
    """The same machine without torch, whose memory it may have measured."""
    return msgspec.structs.replace(profile, edge=True, runtime_bytes=min(profile.runtime_bytes, EDGE_BYTES))


class Admission:
    """Decides on Hello. ``offer`` lists the files that a plan's client has to download.

    A client whose files are being prepared is told to wait, and is nobody here until it has asked again.
    """

    def __init__(
        self,
        run: RunFile,
        base: str,
        invite: str,
        planner: Planner,
        offer: Files,
        roster: Roster,
    ) -> None:
        self._run, self._base, self._invite = run, base, invite
        self._planner, self._offer, self._roster = planner, offer, roster
        self._waiting: dict[str, tuple[DeviceProfile, str, ClientPlan]] = {}

    def hello(
        self, identity: bytes, public_key: str, hello: Hello, now: float, round: int
    ) -> Welcome | Refuse | Waiting:
        """A member is entered into the roster when the answer is Welcome."""
        refusal = self._refusal(identity, public_key, hello, now)
        if refusal is not None:
            return refusal
        assert hello.profile is not None
        profile = hello.profile
        if hello.backend == EDGE:
            profile = on_edge(profile)
        data = hello.data or DataSummary(train_examples=0)
        try:
            plan = self._plan(hello, profile, data)
            welcome = self._welcome(hello.client, plan, hello.backend, round)
        except Preparing as error:
            return Waiting(client=hello.client, on=(), what=str(error))
        except PlanError as error:
            return Refuse(code="no-plan", reason=str(error), fix="ask the operator, or use a larger device")
        except FedsplitError as error:
            self._waiting.pop(hello.client, None)
            return Refuse(code="server", reason=str(error), fix="tell the operator")
        self._waiting.pop(hello.client, None)
        member = Member(hello.client, identity, public_key, profile, plan, data, now, hello.topology)
        member.backend, member.tag = hello.backend, hello.tag or _tag(self._run, hello.client)
        self._roster.put(member)
        return welcome

    def welcome(self, name: str, plan: ClientPlan, round: int) -> Welcome:
        """A plan with all that is needed to follow it, for a member.

        :raises FedsplitError: its files cannot be written. :raises Preparing: they are not ready.
        """
        member = self._roster.get(name)
        return self._welcome(name, plan, member.backend if member is not None else TORCH, round)

    def _plan(self, hello: Hello, profile: DeviceProfile, data: DataSummary) -> ClientPlan:
        """The plan that this client waits for, else a new one."""
        before = self._waiting.get(hello.client)
        if before is not None and before[:2] == (profile, hello.topology):
            return before[2]
        plan = self._planner(hello.client, profile, data, hello.topology)
        self._waiting[hello.client] = profile, hello.topology, plan
        return plan

    def _welcome(self, name: str, plan: ClientPlan, backend: str, round: int) -> Welcome:
        return Welcome(
            run=self._run.run.name,
            client=name,
            run_file=msgspec.json.encode(public(self._run, name)),
            plan=msgspec.json.encode(plan),
            base=self._base,
            assets=self._offer(plan, backend),
            round=round,
        )

    def _refusal(self, identity: bytes, public_key: str, hello: Hello, now: float) -> Refuse | None:
        if not hmac.compare_digest(hello.invite.encode(), self._invite.encode()):
            return Refuse(code="bad-invite", reason="the key in the join line is not this run's", fix="copy it again")
        if not NAME.fullmatch(hello.client):
            return Refuse(
                code="bad-name",
                reason=f"{hello.client!r} is no client name",
                fix=f"use {RULE}, with --name",
            )
        if hello.profile is None:
            return Refuse(code="no-profile", reason="the device sent no profile", fix="run: fedsplit profile")
        if wrong := impossible(hello):
            return Refuse(code="bad-hello", reason=wrong, fix="mend the device's profile or the flag, and join again")
        old = self._roster.get(hello.client)
        if old is None or old.identity == identity:
            return None
        same_owner = old.public_key == public_key and public_key != ""
        if same_owner or not old.here or (public_key == "" and now - old.last_seen > SILENT_S):
            return None
        return Refuse(
            code="name-taken",
            reason=f"another device is in this run as {hello.client!r}",
            fix="choose another name with --name",
        )
