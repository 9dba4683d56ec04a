"""One node: one process, one provider. Put together here, started, kept up, drained and stopped."""

import asyncio
import logging
import os
import secrets
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path

import orjson

from live_bridge import assembly
from live_bridge.bench import Bench
from live_bridge.brain import Brain, Setup
from live_bridge.clock import Clock
from live_bridge.config import NodeSettings, profile_named, terms_named
from live_bridge.core import Core
from live_bridge.correspondence import Correspondence, UnansweredError
from live_bridge.desk import Desk
from live_bridge.gateway import Gateway
from live_bridge.host import Host
from live_bridge.http import client_of, server_of
from live_bridge.http.message import HttpError, HttpServer
from live_bridge.journal import Journal
from live_bridge.ledger.journal import Founding, Receipt
from live_bridge.ledger.store import StoreError
from live_bridge.metrics import NodeMetrics
from live_bridge.peers.addresses import Guard
from live_bridge.peers.envelope import Door
from live_bridge.peers.replays import Bounds as ReplayBounds
from live_bridge.peers.replays import Replays
from live_bridge.peers.rows import Bounds, Directory
from live_bridge.peers.users import Users
from live_bridge.pilot import Pilot
from live_bridge.portrait import Portrait
from live_bridge.purse import Purse
from live_bridge.relay import Relay
from live_bridge.renewal import Renewal
from live_bridge.replay import header
from live_bridge.routes import Router
from live_bridge.slip import Slipped
from live_bridge.society import Society, greet, kept
from live_bridge.trade import Trade
from live_bridge.upkeep import Upkeep, run_all
from live_bridge.view.feed import Feed
from live_bridge.view.recent import Recent
from market.chance import key_of

VERSION = "0.1.0"
LOG = logging.getLogger(__name__)
MOST_NAMES = 1000
LOOK_UP_S = 2.0
GOSSIP_WALL_S = 0.1
"""Least seconds on the wall between two gossip rounds, however fast the clock."""
PAGE_S = 1.0
DAY_S = 86_400.0
SETTLING_S = 2.0
"""Seconds on the wall, at the end of a drain, for what is owed."""


class Node:
    """A provider in the market, live."""

    def __init__(self, settings: NodeSettings, again: Callable[[], NodeSettings]) -> None:
        """Take the settings, and what reads them again when the node is told to (SIGHUP)."""
        self.settings = settings
        self.renewal = Renewal(self, again)
        self._home = Path(settings.home)
        self._stop = asyncio.Event()
        self._status = 0
        self._tasks: set[asyncio.Future[object]] = set()
        self.ready = False
        self.metrics = NodeMetrics()
        self.clock = Clock(settings.speed)
        self.recent = Recent(self.clock.now)
        self.feed = Feed()

    # -- putting together

    async def run(self) -> int:
        """Start, serve until told to stop, drain; returns the exit status.

        errors   Slipped, SettingsError, PolicyError, IdentityError
        """
        loop = asyncio.get_running_loop()
        for word in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(word, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, self.renewal.call)
        life, stopped = asyncio.create_task(self._run()), asyncio.create_task(self._stop.wait())
        await asyncio.wait({life, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if not self.ready:  # there is nothing to drain
            life.cancel()
        stopped.cancel()
        try:
            await life
        except asyncio.CancelledError:
            LOG.info("told to stop before it was ready")
        return self._status

    async def _run(self) -> None:
        assembly.prepared(self.settings, self._home)
        self.identity = assembly.identity_of(self._home)
        self.name = self.settings.name or self.identity.id[:8]
        front, trust = assembly.certificates(self.settings)
        self.client = client_of(self.settings.http, trust)
        self.guard = Guard(self.settings.peers.allow, MOST_NAMES, LOOK_UP_S)
        engine = await self._start_engine()
        try:
            self._make_mind()
            self._make_market()
            await self._meet_engine()
            server = server_of(self.settings.http, self.router.handle, assembly.limits_of(self.settings), self.metrics.http_error)
            try:
                await self._open(server, front)
                await self._live(server)
            finally:
                await assembly.settled(server)
        finally:
            await self._close(engine)

    async def _start_engine(self) -> HttpServer | None:
        """Start the engine where it is this node's to start; find out its URL."""
        self.engine_url, started = self.settings.backend.url, None
        if self.settings.backend.kind == "emulated":
            self.engine_url, started = await assembly.emulated(self.settings, self.clock)
        self.launched = await assembly.launched(self.settings, self.client, self._home)
        if self.launched is not None:
            self.engine_url = self.launched.url
        return started

    def _make_mind(self) -> None:
        """Make the mind, its journal and its policy."""
        settings = self.settings
        terms, profile = terms_named(settings.market), profile_named(settings.profile)
        key = key_of(secrets.randbits(63), 0)
        life = assembly.next_life(self._home)
        setup = Setup(self.identity.id, terms, profile, settings.slo_s, settings.tick_s, key, life, settings.duels.deadline_s)
        seed = key & 0x7FFF_FFFF
        head = header(setup, asdict(terms), asdict(profile), settings.policy, settings.control_s, seed)
        soon = asyncio.get_running_loop().call_soon
        self.journal = Journal(self._home / "journal.jsonl", head, soon, self._disk_failed)
        self.core = Core(Brain(setup), self.clock, self.journal, settings.network)
        self.pilot = Pilot(settings.policy, settings.control_s, seed)
        self.named()
        backend = settings.backend
        self.watcher = assembly.watcher_of(settings, self.client, self.engine_url, self.clock, self.metrics.reading)
        own_key, patience = assembly.engine_key(settings), (backend.connect_s, backend.first_byte_s)
        self.relay = Relay(self.client, self.engine_url, own_key, *patience, self.watcher.wake)

    def _make_market(self) -> None:
        """Make what deals with peers and users."""
        settings, core = self.settings, self.core
        ttl_s = settings.peers.message_ttl_s
        bounds = ReplayBounds(2 * ttl_s, 200_000, 20_000, 4096, 32 << 20)
        replays = Replays(self._home / "messages", bounds, time.time())
        door = Door(self.identity, settings.network, ttl_s, replays, self.metrics.refused)
        round_s, terms = self.gossip_s, core.brain.belief.terms
        self.directory = Directory(
            self.identity.id,
            settings.network,
            Bounds(settings.peers.most, terms.suspect_s + terms.gone_s, round_s / 4),
            self.guard.check,
            core.brain.belief.is_member,
            self.metrics.refused,
        )
        letters = Correspondence(door, self.guard, self.client, self._where)
        self.portrait = Portrait(core, self.directory, self.pilot, self.recent, self.metrics, self.name)
        self.society = Society(core, self.identity, self.directory, door, letters, self.metrics, self.recent, self.spawn)
        self.society.name = self.name
        self.host = Host(core, door, self.relay, self.identity, lambda: self.purse.ledger.founding, self.portrait)
        purse, metrics = lambda: self.purse, self.metrics
        self.trade = Trade(core, letters, purse, self._public_of, self._models_of, metrics, self.portrait, self.spawn)
        self.desk = Desk(core, self.trade, letters, lambda: self.purse, self.metrics, self.recent, self.spawn)
        self.bench = Bench(core, self.host, self.relay, self.identity, self._model, settings.duels.by)
        self.bench.willing = settings.duels.judge
        self.gateway = Gateway(
            core,
            self.relay,
            self.trade,
            self.metrics,
            self.portrait,
            default_max_tokens=settings.users.default_max_tokens,
            retries=settings.peers.retries,
        )
        self.users = Users(Path(settings.users.keys_file)) if settings.users.keys_file else None
        self.upkeep = Upkeep(core, self.pilot, self.watcher, self.metrics, self.portrait.decided)
        self.router = Router(self)

    @property
    def gossip_s(self) -> float:
        """Market seconds between gossip rounds: the terms', but no faster on the wall than a machine can talk."""
        terms = terms_named(self.settings.market)
        return max(terms.gossip_s, GOSSIP_WALL_S * self.clock.speed)

    # -- life

    async def _open(self, server: HttpServer, front: object) -> None:
        """Listen, reach the ledger, open the account, join."""
        host, port = self.settings.address()
        try:
            bound = await server.listen(host, port, front)  # type: ignore[arg-type]
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
            raise Slipped(f"listen: {host}:{port}: cannot be used: {reason}; choose another") from None
        shown = f"[{host}]" if ":" in host else host
        scheme = "https" if front else "http"
        self.address = self.settings.advertise or f"{scheme}://{shown}:{bound}"
        self.society.address = self.address
        remembered = kept(self._home)
        hellos = [await greet(self.client, self.guard, url, self.settings.network) for url in self.settings.join]
        joined = hellos[0]["ledger"] if hellos else None
        self.part = await assembly.ledger_of(self.settings, self.client, self._home, joined, self.metrics.refused)
        ttl_s = self.settings.ledger.hold_ttl_s
        self.purse = Purse(self.part.ledger, self.identity, ttl_s, self._ordered, self.spawn)
        self.society.purse = self.purse
        try:
            await self.purse.open()
            await self.society.read_ledger()
        except StoreError as error:
            raise Slipped(f"ledger: {error}") from None
        for hello in hellos:
            self.society.met[hello["id"]] = hello["address"]
            if not await self.society.exchange(hello["id"]):
                raise Slipped(f"join: {hello['address']} does not answer signed letters; is its peers.allow right?")
        self.spawn(self.society.find_again(remembered, self.client, self.guard))

    async def _meet_engine(self) -> None:
        """See that the engine is there, and learn what it serves.

        errors   Slipped when nobody answers there
        """
        await self.watcher.poll()
        if not self.watcher.alive:
            raise Slipped(f"backend.url: {self.watcher.error}; start the engine first, or let the node do so with backend.launch")
        await self._learn_model()

    async def _live(self, server: HttpServer) -> None:
        """Serve until told to stop, then drain."""
        rounds = [
            (self.settings.tick_s, self.upkeep.tick),
            (self.settings.tick_s, self.portrait.sample),
            (self.settings.control_s, self.upkeep.decide),
            (self.gossip_s, self.society.round),
            (self.gossip_s, self.society.read_ledger),
            (PAGE_S * self.clock.speed, self._show),
            (DAY_S * self.clock.speed, self._tidy),
        ]
        beside = [asyncio.create_task(work()) for work in (self.watcher.run, self.renewal.run)]
        living = asyncio.create_task(run_all(self.core, rounds, self._failed))
        self.ready = True
        LOG.info("ready", extra={"address": self.address, "node": self.identity.id, "policy": self.pilot.name})
        stopped = asyncio.create_task(self._stop.wait())
        parts = [living, *beside]
        await asyncio.wait({stopped, *parts}, return_when=asyncio.FIRST_COMPLETED)
        for part in parts:
            if part.done():
                self._failed(part.exception())
        await self._drain(server)
        stopped.cancel()
        for part in parts:
            part.cancel()
        await asyncio.gather(*parts, return_exceptions=True)

    async def _drain(self, server: HttpServer) -> None:
        """Take no more, say so, let what runs end."""
        self.gateway.draining = self.host.draining = self.portrait.draining = True
        until = time.monotonic() + self.settings.limits.drain_s
        self.recent.event("this node is leaving: no new work, answers under way end")
        LOG.info("leaving", extra={"jobs": len(self.core.jobs), "drain_s": self.settings.limits.drain_s})
        await self.society.farewell()
        while self.core.jobs and time.monotonic() < until:
            await asyncio.sleep(0.02)
        self.feed.close()
        await server.drain(max(until - time.monotonic(), 0.1))
        await asyncio.wait(self._tasks, timeout=SETTLING_S) if self._tasks else None

    async def _close(self, engine: HttpServer | None) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        part = getattr(self, "part", None)
        if part is not None:
            await part.ledger.close()
        await assembly.settled(engine)
        if self.launched is not None:
            await self.launched.stop()
        await self.client.close()
        if hasattr(self, "pilot"):
            self.pilot.close()
        if hasattr(self, "journal"):
            self.journal.close()

    # -- what happens meanwhile

    def spawn(self, work: Awaitable[object]) -> None:
        """Let something happen beside; what it fails of is logged and counted."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: "asyncio.Future[object]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._failed(task.exception())

    def _failed(self, error: BaseException | None) -> None:
        """Something beside the requests has failed: an unreachable ledger or peer is survived, all else ends the node."""
        if isinstance(error, (StoreError, UnansweredError, HttpError)):
            LOG.warning("out of reach", extra={"reason": str(error)})
            self.recent.event(f"out of reach: {error}")
            return
        LOG.error("a part of the node has failed; it leaves", exc_info=error)
        self._status = 1
        self._stop.set()

    def _disk_failed(self, error: OSError) -> None:
        LOG.error("the journal cannot be written", extra={"reason": str(error)})
        self.recent.event(f"the journal cannot be written: {error}")

    def _ordered(self, kind: str, receipt: Receipt | None) -> None:
        if receipt is None:
            self.metrics.order(kind, "unanswered")
            return
        self.metrics.order(kind, "accepted" if receipt.accepted else "refused")
        self.society.paid(receipt)

    def _where(self, peer: str) -> str | None:
        row = self.directory.get(peer)
        return row.address if row is not None else self.society.met.get(peer)

    def _models_of(self, peer: str) -> tuple[str, ...]:
        row = self.directory.get(peer)
        return () if row is None else row.models

    def _public_of(self, peer: str) -> bytes | None:
        row = self.directory.get(peer)
        return None if row is None else row.public

    async def _learn_model(self) -> None:
        """Ask the engine what it serves; one that does not answer yet is asked again when a vote is due."""
        try:
            status, _, body = await self.relay.get("/v1/models")
            models = [str(model["id"]) for model in orjson.loads(body)["data"]] if status == 200 else []
        except (HttpError, orjson.JSONDecodeError, KeyError, TypeError):
            models = []
        self.society.models = tuple(models[:32])

    def _model(self) -> str:
        return self.society.models[0] if self.society.models else ""

    async def _show(self) -> None:
        if not self.society.models:
            await self._learn_model()
        self.feed.publish(self.portrait.snapshot())
        self.society.keep(self._home)

    async def _tidy(self) -> None:
        """Delete old journals, where the settings say so."""
        days = self.settings.journal.keep_days
        if days is None:
            return
        try:
            gone = self.journal.forget(time.time() - days * DAY_S)
        except OSError as error:
            self._disk_failed(error)
        else:
            LOG.info("old journals are deleted", extra={"files": gone, "keep_days": days})

    def named(self) -> None:
        """Say in the metrics who this is and what steers it."""
        self.metrics.identify(self.identity.id, self.name, self.pilot.name, VERSION)

    @property
    def founding(self) -> Founding:
        """Of the ledger in use."""
        return self.purse.ledger.founding
