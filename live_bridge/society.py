"""Other nodes: how one joins them, tells and hears the news, and knows what all accounts hold."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import orjson

from live_bridge.core import Core
from live_bridge.correspondence import Correspondence, UnansweredError
from live_bridge.http.message import HttpClient, HttpError, Response
from live_bridge.identity import Identity
from live_bridge.ledger.journal import Receipt
from live_bridge.ledger.store import StoreError
from live_bridge.metrics import NodeMetrics
from live_bridge.peers.addresses import AddressError, Guard
from live_bridge.peers.envelope import Door, Message
from live_bridge.peers.rows import LONGEST_MODEL, LONGEST_NAME, MOST_AGE_S, MOST_MODELS, Directory, Heard, News, Row
from live_bridge.purse import Purse
from live_bridge.slip import Slipped
from live_bridge.view.recent import Recent

GOSSIP, HELLO = "/market/v1/gossip", "/market/v1/hello"
HELLO_BYTES = 65_536
MET_FILE = "peers"
MODELS_CHARACTERS = 1000
"""Of all names of models in a row, which is read only up to a length."""
MOST_MET = 100
"""Addresses kept for the next life: a node that founded its network finds it again."""


class Society:
    """Membership and gossip of one node."""

    def __init__(
        self,
        core: Core,
        identity: Identity,
        directory: Directory,
        door: Door,
        letters: Correspondence,
        metrics: NodeMetrics,
        recent: Recent,
        spawn: Callable[[Awaitable[object]], None],
    ) -> None:
        self._core = core
        self._identity = identity
        self._directory = directory
        self._door = door
        self._letters = letters
        self._metrics = metrics
        self._recent = recent
        self._spawn = spawn
        self._left: set[str] = set()
        self._moving = False
        self.met: dict[str, str] = {}
        """Addresses of peers, by id, as they said themselves when they were greeted."""
        self._kept: list[str] = []
        self.purse: Purse | None = None
        self.address = ""
        self.name = ""
        self.models: tuple[str, ...] = ()
        self.leaving = False
        self.cut_off = False
        """Whether the ledger is away."""
        core.carry_out |= {"gossip": self._gossip, "lost": self._lost, "stake": self._stake, "unstake": self._unstake}

    # -- what is told

    async def round(self) -> None:
        """One gossip round: let the mind post and choose a partner."""
        self._core.emit("gossip")
        self._post()
        for peer in self._directory.silent(self._core.clock.now()):
            self._core.emit("forget", peer)

    def _post(self) -> None:
        """Sign what the mind has posted."""
        brain = self._core.brain
        row = brain.belief.rows[0]
        mine = Row(
            self._identity.public,
            self.address,
            self.name[:LONGEST_NAME],
            shown(self.models),
            row.version,
            _within(row.wait_s, MOST_AGE_S),
            _within(row.usage, 1.0),
            0.0 if self.leaving else float(row.accepts),
            row.duels_won,
            row.duels_lost,
            self.leaving,
        )
        self._directory.post(self._identity, mine, self._core.clock.now())

    def _gossip(self, peer: str) -> None:
        self._spawn(self.exchange(peer))

    async def exchange(self, peer: str) -> bool:
        """Tell a peer all news and hear its; False when it does not answer."""
        core = self._core
        if self._directory.get(core.brain.setup.me) is None:
            self._post()
        patience_s = max(core.clock.wall_s(core.brain.belief.terms.offer_timeout_s), 0.25)
        try:
            _, answer = await self._letters.ask_raw(peer, GOSSIP, self._directory.export(core.clock.now(), {}), patience_s)
        except UnansweredError:
            core.emit("mute", peer)
            return False
        self._hear(answer)
        return True

    def hear(self, message: Message, response: Response) -> None:
        """A peer tells its news: take it, and answer with what it has not heard."""
        news = self._hear(message.body)
        body = self._directory.export(self._core.clock.now(), news.known)
        response.send(200, self._door.reply(message, 200, body), body)

    def _hear(self, payload: bytes) -> News:
        core = self._core
        news = self._directory.heard(payload, core.clock.now())
        for one in news.rows:
            if one.row.id not in core.brain.belief.places:
                self._recent.event(f"{one.row.name} ({one.row.id[:8]}) has joined")
        if news.rows:
            core.emit("heard", [_told(one) for one in news.rows])
        for one in news.rows:
            peer = one.row.id
            if one.row.leaving:
                core.emit("leaving", peer)
                if peer not in self._left:
                    self._recent.event(f"{one.row.name} ({peer[:8]}) is leaving")
                self._left.add(peer)
            else:
                self._left.discard(peer)
        return news

    def _lost(self, peer: str) -> None:
        self._recent.event(f"{peer[:8]} does not answer any more")

    async def farewell(self) -> None:
        """Say that this node leaves, to every peer believed alive."""
        self.leaving = True
        core = self._core
        core.emit("leaving", core.brain.setup.me)
        core.emit("gossip")
        self._post()
        await asyncio.gather(*(self.exchange(peer) for peer in core.brain.alive()))

    # -- from one life to the next

    def keep(self, home: Path) -> None:
        """Write down where peers are."""
        rows = [self._directory.get(peer) for peer in self._core.brain.alive()]
        urls = sorted(row.address for row in rows if row is not None)[:MOST_MET]
        if not urls or urls == self._kept:
            return
        self._kept = urls
        part = home / f"{MET_FILE}.next"
        try:
            part.write_text("\n".join(urls) + "\n", encoding="ascii")
            part.replace(home / MET_FILE)
        except OSError as error:
            self._recent.event(f"{part}: cannot be written: {error.strerror}")

    async def find_again(self, urls: list[str], client: HttpClient, guard: Guard) -> None:
        """Look for the peers of an earlier life; who is not there any more is not missed."""
        for url in urls:
            try:
                hello = await greet(client, guard, url, self._core.network)
            except Slipped:
                continue
            if hello["id"] != self._core.brain.setup.me:
                self.met[hello["id"]] = hello["address"]
                await self.exchange(hello["id"])

    # -- the ledger

    async def read_ledger(self) -> None:
        """Tell the mind what all accounts hold.

        errors   StoreError, once for each time that the ledger is away
        """
        if self.purse is None:
            return
        try:
            accounts = await self.purse.accounts()
        except StoreError:
            if not self.cut_off:
                self.cut_off = True
                raise
            return
        if self.cut_off:
            self.cut_off = False
            self._recent.event("the ledger answers again")
        self._core.emit("accounts", [[owner, *held] for owner, held in accounts.items()])

    def paid(self, receipt: Receipt) -> None:
        """A receipt for an own order: what the account holds since."""
        if receipt.accepted:
            held = [receipt.credit_micro, receipt.stake_micro, receipt.unbonding_micro, receipt.escrow_micro]
            self._core.emit("accounts", [[receipt.account, *held]])

    def _stake(self, amount_micro: int) -> None:
        self._move(lambda purse: purse.stake(amount_micro))

    def _unstake(self, amount_micro: int) -> None:
        self._move(lambda purse: purse.unstake(amount_micro))

    def _move(self, order: Callable[[Purse], Awaitable[Receipt]]) -> None:
        """Move stake, one order at a time: the next tick sees what came of it."""
        if self.purse is not None and not self._moving:
            self._moving = True
            self._spawn(self._moved(order(self.purse)))

    async def _moved(self, order: Awaitable[Receipt]) -> None:
        try:
            await order
        finally:
            self._moving = False


def kept(home: Path) -> list[str]:
    """Read where peers were in an earlier life; nothing where that was not written down, or not by a node."""
    try:
        urls = (home / MET_FILE).read_text(encoding="ascii").split()
    except (OSError, UnicodeDecodeError):
        return []
    return urls[:MOST_MET]


def shown(models: tuple[str, ...]) -> tuple[str, ...]:
    """Names of models that fit into a row, from the first on."""
    out: list[str] = []
    for name in models:
        if len(name) <= LONGEST_MODEL and sum(map(len, out)) + len(name) <= MODELS_CHARACTERS:
            out.append(name)
    return tuple(out[:MOST_MODELS])


def _within(value: float, most: float) -> float:
    """Bring a number into [0, most]; what is none is the worst."""
    return min(max(float(value), 0.0), most) if value == value else most  # noqa: PLR0124 - not a number equals nothing


def _told(one: Heard) -> list[object]:
    """A row as the mind is told of it: see Belief.hear."""
    row = one.row
    return [row.id, row.version, one.age_s, row.wait_s, row.usage, row.accepts, row.duels_won, row.duels_lost]


async def greet(client: HttpClient, guard: Guard, url: str, network: str) -> dict[str, str]:
    """Ask the node at `url` who it is: id, public, address, ledger.

    errors   Slipped when nobody answers there, or it is of another network
    """
    try:
        pinned = await guard.pin(url)
        with await client.request("GET", pinned.url + HELLO, address=pinned.ip, connect_s=5.0, first_byte_s=5.0) as reply:
            said = orjson.loads(await reply.body(HELLO_BYTES))
    except (HttpError, AddressError) as error:
        raise Slipped(f"join: {url}: {error}") from None
    except orjson.JSONDecodeError:
        raise Slipped(f"join: {url} answers, but is no node of a market") from None
    wanted = {"id", "public", "network", "address", "ledger"}
    if not isinstance(said, dict) or not wanted <= set(said) or not all(isinstance(said[key], str) for key in wanted):
        raise Slipped(f"join: {url} answers, but is no node of a market")
    if said["network"] != network:
        raise Slipped(f"join: {url} is of network {said['network']}, this node of {network}; set network={said['network']}")
    return {key: said[key] for key in wanted}
