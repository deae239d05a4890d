"""The device's process: dial, look at the offer, agree, fetch what the plan needs, train, keep the result."""

from __future__ import annotations

import hashlib
import platform
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from msgspec.structs import replace
from safetensors import numpy as safetensors

from fedsplit.config.run import RunFile
from fedsplit.devices.limits import Limits
from fedsplit.devices.profile import DeviceProfile
from fedsplit.errors import DataError, FedsplitError, Refused
from fedsplit.events import Emit, Note, silent
from fedsplit.exchange.feed import Feed
from fedsplit.exchange.part import Part
from fedsplit.lora.adapter import flatten
from fedsplit.plan.consent import objection
from fedsplit.plan.traffic import round_up_bytes
from fedsplit.plan.types import ClientPlan
from fedsplit.state.durable import make_private
from fedsplit.state.lock import FolderLock
from fedsplit.state.personal import ClientRun, Personal, model_name
from fedsplit.wire.ends import ClientEnd
from fedsplit.wire.keyfile import KeyPair
from fedsplit.wire.link import JoinLink
from fedsplit.wire.messages import Bye, DataSummary
from fedsplit_client import door
from fedsplit_client.ahead import Ahead, look_ahead
from fedsplit_client.backend import Backend, Opened, choose
from fedsplit_client.computing import threads_of
from fedsplit_client.dealer import Dealer
from fedsplit_client.ending import keep_end
from fedsplit_client.heap import give_back
from fedsplit_client.keys import load_keys
from fedsplit_client.line import ServerLine
from fedsplit_client.orderly import OrderlyEnd
from fedsplit_client.owner import Left, Owner, Paused
from fedsplit_client.pauses import with_pauses
from fedsplit_client.place import Load, Place
from fedsplit_client.room import refuse_too_large
from fedsplit_client.sensors import Sensors, of_this_machine
from fedsplit_client.session import Offer, Session
from fedsplit_client.uploads import Uploads
from fedsplit_client.wish import Elsewhere, HandOver, Wish
from fedsplit_client.worker import Result, Worker

Agree = Callable[[Offer, str], bool]
"""Shown the offer and the path of the data; False: nothing was sent, nothing is."""


@dataclass(frozen=True)
class Joined:
    """A client's run from its own side: the plan it followed, the result, and what moved over the link."""

    offer: Offer
    result: Result
    up_bytes: int
    down_bytes: int
    folder: Path

    @property
    def plan(self) -> ClientPlan:
        return self.offer.plan


def join(
    link: str | JoinLink,
    data: str | Path,
    *,
    name: str = "",
    topology: str = "",
    model: str = "",
    profile: DeviceProfile | None = None,
    device: str = "cpu",
    backend: str = "",
    tag: str = "",
    state: str | Path | None = None,
    agree: Agree = lambda offer, data: True,
    emit: Emit = silent,
    learning: bool = False,
    measure_link: bool = True,
    limits: Limits | None = None,
    sensors: Sensors | None = None,
) -> Joined:
    """Take part in a run with the rows of ``data``, which stay here.

    ``model``: a folder with the base model, when it is here already; otherwise the parts that the plan needs are
    fetched from the server. ``profile``: what this device can do; by default measured once and kept.
    ``backend``: what computes, ``torch`` or ``edge``; by default torch where it is installed.
    ``tag``: what the data is, for methods with groups (``deu_Latn``, say); the operator sees it.
    ``measure_link``: measure the way to the server first, a second or two, unless ``profile`` has it; this machine's
    own profile keeps it.
    ``limits``: what the owner allows, instead of what the profile says. When they forbid to go on, the connection ends,
    the server hears for how long, and the device comes back by itself. ``sensors``: others than this machine's.
    ``learning``: correct the kept one by what this run showed (not a ``profile`` that was given, and on the CPU only).

    :raises ConfigError: the link, the name, the topology, the backend or the device; before anything is dialled.
    :raises MissingExtra: what the backend needs is not installed.
    :raises LinkError: no server there, or it went away for longer than the run's patience.
    :raises Refused: the server, or the owner, said no. :raises DataError: the data is wrong.
    :raises OutOfMemory: the plan takes more than the owner allows. :raises Left: the owner said `fedsplit leave`.
    """
    wish = Wish(
        link=str(link),
        data=str(data),
        name=name,
        topology=topology,
        model=model,
        profile=profile,
        device=device,
        backend=backend,
        tag=tag,
        state=str(state) if state is not None else "",
        learning=learning,
        measure_link=measure_link,
        limits=limits,
    )
    return take_part(wish, agree, emit, sensors=sensors)


def take_part(
    wish: Wish,
    agree: Agree,
    emit: Emit = silent,
    *,
    sensors: Sensors | None = None,
    hand_over: HandOver | None = None,
) -> Joined:
    """As ``join``. ``hand_over``: once the owner has agreed, and where what computes is small enough for it to matter
    what else is in memory, a fresh process may go on. Raises as ``join``."""
    link, name = _checked(wish)
    wish = replace(wish, name=name)
    computes = choose(wish.backend, wish.device)
    if computes.name != "edge" or wish.agreed is not None:
        hand_over = None
    try:
        return _taking_part(wish, link, computes, agree, emit, sensors, hand_over is not None)
    except Elsewhere as elsewhere:
        assert hand_over is not None
        agreed = elsewhere.wish
    hand_over(agreed)
    return take_part(agreed, agree, emit, sensors=sensors)


def _taking_part(
    wish: Wish,
    link: JoinLink,
    computes: Backend,
    agree: Agree,
    emit: Emit,
    sensors: Sensors | None,
    only_agree: bool,
) -> Joined:
    """Raises as ``join``; Elsewhere where the owner has agreed and that is all that is wanted."""
    personal = Personal(wish.state or None)
    keys = load_keys(personal.keys)
    own, profile = _profile(wish, emit)
    with ExitStack() as held:
        # Before the hello: a second process under this name would take the first one's place at the server.
        folder = held.enter_context(_alone(personal, link, wish.name)).path.parent
        sensors = sensors or of_this_machine()
        owner = Owner(profile.limits, sensors, Uploads(folder, lambda: sensors.now().date()), emit, wish.name)
        held.callback(owner.close)
        stay = Stay(wish, link, keys, personal, owner, held, profile, own, offer=wish.agreed)

        def once() -> Joined:
            return _once(stay, computes, agree, emit, only_agree)

        return with_pauses(owner, once, lambda: _goodbye(stay, emit), emit, wish.name, lambda: stay.patience_s)


def _profile(wish: Wish, emit: Emit) -> tuple[Path | None, DeviceProfile]:
    """(file of this machine's own profile, where it is that; what this device can do, with the owner's limits)."""
    if wish.profile is not None:
        own, profile = Path(wish.own) if wish.own else None, wish.profile
    else:
        from fedsplit.devices.find import own_path
        from fedsplit.probe.measure import this_device

        own, profile = own_path(), this_device(emit=emit)
    return own, replace(profile, limits=wish.limits) if wish.limits is not None else profile


@dataclass
class Stay:
    """What outlives a pause. ``held``: what is let go of at the very end; ``own``: this machine's profile's file;
    ``offer``: what the owner agreed to last; ``kept``: the run's state here, once the run is known."""

    wish: Wish
    link: JoinLink
    keys: KeyPair
    personal: Personal
    owner: Owner
    held: ExitStack
    profile: DeviceProfile
    own: Path | None
    offer: Offer | None = None
    kept: ClientRun | None = None
    patience_s: float = 0.0

    @property
    def name(self) -> str:
        return self.wish.name

    def folder_of(self, offer: Offer) -> ClientRun:
        """The run's state, locked until the very end: during a pause too nobody else may take part as this client."""
        if self.kept is None:
            server = self.link.server_key.hex() or self.link.endpoint
            self.kept = self.personal.run(offer.run.run.name, server=server, client=self.name)
            self.held.enter_context(self.kept.lock())
            self.owner.in_run(self.kept.path)
            self.kept.uses(model_name(offer.base))
        elif self.kept.info.run != offer.run.run.name:
            raise Refused(f"{self.link.endpoint} now serves another run, {offer.run.run.name}; join again")
        return self.kept

    def agreed(self, offer: Offer) -> bool:
        """Whether the owner has agreed to this already, or to more, before a pause."""
        before = self.offer
        return before is not None and before.base == offer.base and not objection(before.plan, before.plan, offer.plan)


def _once(stay: Stay, computes: Backend, agree: Agree, emit: Emit, only_agree: bool) -> Joined:
    """From the hello to the end of the run, or to the next pause. Raises as ``_taking_part``, and Paused."""
    wish, link, name, keys, own, owner = stay.wish, stay.link, stay.name, stay.keys, stay.own, stay.owner
    with ExitStack() as stack:
        dealer = stack.enter_context(Dealer(link, keys))
        owner.dialled(lambda: dealer.sent_bytes)
        end = OrderlyEnd(dealer, name, emit)
        if wish.measure_link and stay.offer is None:
            from fedsplit_client.gauge import with_link

            stay.profile = with_link(end, link, stay.profile, name, emit, keep=own)
            give_back()
        profile = stay.profile
        session = Session(end, link, name, profile, wish.topology, emit, backend=computes.name, tag=wish.tag)
        offer = session.hello()
        kept = stay.folder_of(offer)
        most = owner.limits.threads
        stack.enter_context(computes.computing(threads_of(offer.run, name, profile if own else None, most)))
        with farewell(end, name):
            agreed = stay.agreed(offer)
            planned = as_planned(offer)
            ahead = Ahead(offer)
            if not agreed or wish.agreed is None:  # else the process that asked has looked
                ahead = look_ahead(computes, offer, planned, wish.data, wish.model, kept.path, name)
            owner.check(offer.plan, round_up_bytes(offer.plan, offer.run))
            if not agreed and not agree(ahead.offer, wish.data):
                raise Refused("you did not agree; nothing of your data was sent")
            stay.offer = offer
            if only_agree:
                raise Elsewhere(replace(wish, profile=profile, own=str(own or ""), backend=computes.name, agreed=offer))
            dealer.patience_s = stay.patience_s = offer.run.rounds.patience_s
            if wish.device == "cpu":
                refuse_too_large(offer.plan)
            opened = ahead.opened or _downloaded(computes, link, keys, offer, kept.path, name, emit)
            feed = ahead.feed or opened.feed(wish.data, planned, name)
            summary = _examined(feed, wish.data, name, emit)
            load = _loader(computes, offer.plan, ahead.opened, link, keys, kept.path, name, emit)
            place = Place(session, offer, summary, opened.part(offer), load, emit)
            line = ServerLine(
                end, server=link.endpoint, patience_s=stay.patience_s, emit=emit, client=name, watch=owner.waiting
            )
            worker = Worker(name, offer.run, place, feed, line, emit, kept, owner)
            give_back()
            session.accept(offer, summary)
            result = worker.work()
        meta = {"base": offer.base, "reason": result.reason, "own": worker.own}
        keep_end(kept, place.offer, opened.config, result, meta)
        if wish.learning and own is not None and wish.device == "cpu":
            from fedsplit_client.learn import learn

            learn(own, place.offer, opened.config, summary, worker.steps, emit, edge=computes.name == "edge")
        return Joined(place.offer, result, end.up_bytes, end.down_bytes, kept.path)


def _loader(
    backend: Backend,
    first: ClientPlan,
    whole: Opened | None,
    link: JoinLink,
    keys: KeyPair,
    folder: Path,
    name: str,
    emit: Emit,
) -> Load:
    """Loads the segments of other plans than the first, which may need other files unless the model is ``whole``."""
    followed = [first]

    def load(offer: Offer) -> Part:
        left = whole or backend.left_by(followed, offer, folder)
        opened = left or _downloaded(backend, link, keys, offer, folder, name, emit)
        followed.append(offer.plan)
        return opened.part(offer)

    return load


def _checked(wish: Wish) -> tuple[JoinLink, str]:
    """The link and the name, when nothing is wrong with what was given. Raises as ``join``."""
    link, name = JoinLink.parse(wish.link), wish.name or host_name()
    door.check(name=name, topology=wish.topology, tag=wish.tag)
    if not Path(wish.data).exists():
        raise DataError("no such file or folder", wish.data)
    return link, name


def _downloaded(
    backend: Backend, link: JoinLink, keys: KeyPair, offer: Offer, folder: Path, name: str, emit: Emit
) -> Opened:
    """What the plan needs, on a connection of its own."""
    with Dealer(link, keys) as bulk:
        return backend.fetched(bulk, offer, folder, name, emit)


def _examined(feed: Feed, data: str, name: str, emit: Emit) -> DataSummary:
    """The rows' counts; what was cut or left out of them is said. Raises DataError where none is left to train on."""
    if not feed.dataset.report.clean:
        emit(Note(client=name, text=str(feed.dataset.report), warning=True))
    summary = feed.dataset.summary
    if not summary.train_examples:
        raise DataError("found no row to train on; add rows, or lower data.eval_fraction", data)
    return summary


@contextmanager
def farewell(end: ClientEnd, name: str) -> Iterator[None]:
    """An error that ends the block ends this client's part in the run: the server hears so, if it can be told.

    Ctrl-C and kill do not: whoever is interrupted may come back, and is waited for.
    """
    try:
        yield
    except Exception as error:
        with suppress(FedsplitError):
            # Not its text: that may quote a row, or say when nobody is at home.
            end.send(_last_word(error, name))
        raise


def _last_word(error: Exception, name: str) -> Bye:
    match error:
        case Paused():
            return Bye(client=name, reason="away", back_s=error.pause.back_s)
        case Left():
            return Bye(client=name, reason="left")
    return Bye(client=name, reason=type(error).__name__)


def _goodbye(stay: Stay, emit: Emit) -> None:
    """Said by one that is away and does not come back: the server need not wait."""
    with suppress(FedsplitError), Dealer(stay.link, stay.keys) as dealer:
        end = OrderlyEnd(dealer, stay.name, emit)
        Session(end, stay.link, stay.name, stay.profile, "", emit).hello()
        end.send(Bye(client=stay.name, reason="left"))


def _alone(personal: Personal, link: JoinLink, name: str) -> FolderLock:
    key = hashlib.blake2b(f"{link.endpoint}/{name}".encode(), digest_size=6).hexdigest()
    folder = make_private(personal.path / "joined" / key)
    return FolderLock(folder, "client of a server", "stop it, or join under another --name")


def save(joined: Joined, path: Path) -> None:
    """The final factors that this client holds, by module, as one safetensors file of float32."""
    arrays = flatten(joined.result.adapter, joined.result.head)
    # Not save_file: what it writes nobody but its owner may read.
    path.write_bytes(safetensors.save({name: np.ascontiguousarray(array) for name, array in arrays.items()}))


def as_planned(offer: Offer) -> RunFile:
    """The run with this client's batch and micro-batches."""
    plan = offer.plan
    train = replace(offer.run.train, batch=plan.batch, micro_batches=plan.micro_batches)
    return replace(offer.run, train=train)


def host_name() -> str:
    """This machine's name, made fit to be a client's."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", platform.node().split(".")[0]).strip("-._")[:64] or "device"
