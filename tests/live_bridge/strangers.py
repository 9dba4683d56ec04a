"""Peers without a node: they have a key, perhaps an account, and send whatever letters a test wants them to."""

import time
from pathlib import Path
from typing import Any

import orjson

from live_bridge.correspondence import Correspondence
from live_bridge.host import Offer
from live_bridge.identity import load
from live_bridge.ledger.orders import Author, Hold, Open, encode
from live_bridge.ledger.remote import RemoteLedger
from live_bridge.peers.addresses import Guard
from live_bridge.peers.envelope import Door
from live_bridge.peers.replays import Bounds, Replays
from live_bridge.trade import OFFER, WORK
from tests.live_bridge.towns import PATIENCE_S, Town

NETWORK = "wwwserve"
HOUR_US = 3_600_000_000
BODY = b'{"prompt":"hello","max_tokens":8}'
Proof = dict[str, Any]


class Stranger:
    """One of them."""

    def __init__(self, place: Town, ledger: RemoteLedger, home: Path, names: dict[str, str]) -> None:
        """Take the node's URLs by id."""
        self.identity = load(home / "stranger.key")
        replays = Replays(home / "messages", Bounds(60.0, 1000, 1000, 4096, 1 << 20), time.time())
        door = Door(self.identity, NETWORK, 30.0, replays, lambda _: None)
        self._letters = Correspondence(door, Guard(["127.0.0.0/8"], 10, 1.0), place.client, names.get)
        self._author = Author(self.identity, ledger.founding.realm)
        self._ledger = ledger
        self._works = 0

    @classmethod
    async def of(cls, place: Town, home: Path) -> "Stranger":
        """Come to a town, without an account."""
        home.mkdir()
        names = {(await place.get("/market/v1/state", at))["id"]: url for at, url in enumerate(place.urls)}
        ledger = await RemoteLedger.connect(place.client, place.urls[0], network=NETWORK, patience_s=PATIENCE_S)
        return cls(place, ledger, home, names)

    async def leave(self) -> None:
        """Send nothing more."""
        await self._ledger.close()

    async def open(self) -> None:
        """Open an account."""
        assert (await self._ledger.submit(self._author.write(Open()))).accepted

    async def hold(self, payee: str, amount_micro: int = 1_000_000, ttl_us: int = HOUR_US) -> Proof:
        """Set credit aside; what proves it."""
        self._works += 1
        order = self._author.write(Hold(f"{self.identity.id[:12]}.h{self._works}", payee, amount_micro, ttl_us, "work", "r"))
        receipt = await self._ledger.submit(order)
        assert receipt.accepted, receipt.reason
        return {"order": orjson.loads(encode(order)), "receipt": list(receipt)}

    async def offer(self, to: str, work_id: str | None = None) -> str:
        """Offer work that must be accepted; its id."""
        self._works += 1
        offer = Offer(work_id or f"{self.identity.id[:12]}.1.{self._works}", 10, 8, 100.0)
        status, said = await self._letters.ask(to, OFFER, offer._asdict(), PATIENCE_S)
        assert (status, said) == (200, {"accept": True})
        return offer.id

    async def work(self, to: str, work_id: str, proof: Proof) -> tuple[int, bytes]:
        """Send work; the status and bytes of the answer."""
        head = orjson.dumps({"id": work_id, "path": "/v1/completions", "headers": [], "proof": proof})
        with await self._letters.stream(to, WORK, len(head).to_bytes(4, "big") + head + BODY, PATIENCE_S) as reply:
            return reply.status, await reply.body(1 << 20)

    async def say(self, to: str, path: str, letter: object) -> tuple[int, object]:
        """Send any letter."""
        return await self._letters.ask(to, path, letter, PATIENCE_S)
