"""A made-up market for the live page, without a node: `python -m tests.live_bridge.market_demo [--port 9009] [--nodes 6]`."""

import argparse
import asyncio
import math
import random

from live_bridge.clock import Clock
from live_bridge.http.message import Limits
from live_bridge.http.server import Server
from live_bridge.view import Feed, Recent, why
from market.observation import OBSERVATION_SIZE

NAMES = ("berlin", "oslo", "lisbon", "kyoto", "lagos", "quito", "hanoi", "perth", "turin", "cusco", "basel", "dakar")


def id_of(k):
    return random.Random(k).randbytes(20).hex()


class Demo:
    """A market that is all chance: what it shows is of the right form, and moves."""

    def __init__(self, nodes=6, speed=1.0, clock=None):
        self.clock = clock or Clock(speed)
        self.chance = random.Random(7)
        self.recent = Recent(self.clock.now)
        self.speed = speed
        self.ids = [id_of(k) for k in range(nodes)]
        self.stakes = [self.chance.uniform(1, 60) ** 1.1 for _ in self.ids]
        self.totals = dict.fromkeys(
            ("arrived", "attained", "missed", "failed", "delegated", "executed_for_others", "in_flight", "queued"), 0
        )
        self.levels = (2, 1, 2)
        self.failure = None

    def name(self, k):
        return NAMES[k] if k < len(NAMES) else f"node-{k}"

    def usage(self, k, now):
        return min(max(0.5 + 0.45 * math.sin(now / 23 + 1.7 * k) + self.chance.gauss(0, 0.02), 0.0), 1.0)

    def step(self, span_s=1.0):
        """Let a second of the market pass."""
        chance, ids, totals = self.chance, self.ids, self.totals
        for _ in range(chance.randrange(1, 4)):
            totals["arrived"] += 1
            totals["in_flight"] += 1
            if len(ids) > 2 and chance.random() < 0.55:
                totals["delegated"] += 1
                self.recent.flow(ids[0], chance.choices(ids[1:], self.stakes[1:])[0], "user")
            if chance.random() < 0.93:
                totals["attained"] += 1
            elif chance.random() < 0.8:
                totals["missed"] += 1
            else:
                totals["failed"] += 1
            totals["in_flight"] -= chance.random() < 0.8
            self.recent.latency(chance.lognormvariate(2.2, 0.7))
        totals["in_flight"] = min(totals["in_flight"], 23)
        totals["queued"] = chance.randrange(0, 6)
        if len(ids) > 3:
            for origin in ids[1:4]:
                if chance.random() < 0.35:
                    totals["executed_for_others"] += 1
                    self.recent.flow(origin, ids[0], "user")
            if chance.random() < 0.2:
                self.recent.flow(ids[0], ids[3], "copy")
            if chance.random() < 0.12:
                self.recent.flow(ids[0], ids[2], "judge")
                self.recent.flow(ids[0], ids[-1], "judge")

    def decide(self):
        chance = self.chance
        self.levels = tuple(min(max(level + chance.choice((-1, 0, 0, 1)), 0), 4) for level in self.levels)
        seen = [chance.uniform(0.05, 0.8) for _ in range(OBSERVATION_SIZE)]
        self.recent.decision(None if self.failure else self.levels, self.failure, why(seen))

    def duel(self):
        a, b, *judges = self.chance.sample(self.ids[1:], 5)
        votes = [(judge, self.chance.choice(("A", "A", "B", "abstain", "absent"))) for judge in judges]
        tally = sum((vote == "A") - (vote == "B") for _, vote in votes)
        self.recent.duel(a, b, a if tally > 0 else b if tally < 0 else None, votes)

    def snapshot(self, *, draining=False, statuses=None):
        now = self.clock.now()
        nodes = []
        for k, one in enumerate(self.ids):
            use = self.usage(k, now)
            nodes.append(
                {
                    "id": one,
                    "name": self.name(k),
                    "address": f"http://10.0.0.{k + 2}:9000",
                    "me": k == 0,
                    "status": (statuses or {}).get(k, "alive"),
                    "wait_s": max(0.0, (use - 0.6) * 40),
                    "usage": use,
                    "running": int(use * 24),
                    "waiting": int(max(0, use - 0.8) * 30) if k == 0 else None,
                    "accepts": 0.0 if use > 0.9 else 1.0,
                    "credit": 100 + 40 * math.sin(k + now / 60),
                    "stake": self.stakes[k],
                    "duels_won": 3 * k % 7,
                    "duels_lost": 2 * k % 5,
                    "age_s": 0.0 if k == 0 else 1.0 + k % 4,
                }
            )
        due = sum(self.totals[name] for name in ("attained", "missed", "failed"))
        me = nodes[0]
        self.recent.sample(me["wait_s"], me["usage"], me["credit"] + me["stake"], self.totals["attained"] / due if due else None)
        head = {
            "id": me["id"],
            "name": me["name"],
            "policy": "ppo_wwwserve",
            "brain": "paper" if self.failure else "policy",
            "speed": self.speed,
            "draining": draining,
            "uptime_s": now,
        }
        return self.recent.snapshot(head, nodes, dict(self.totals))


class FakeClock:
    """A clock that a test moves."""

    def __init__(self, now_s=0.0):
        self.now_s = now_s

    def now(self):
        return self.now_s


def lived(nodes=6, seconds=330, speed=1.0):
    """A demo that has already run for some minutes."""
    clock = FakeClock()
    demo = Demo(nodes, speed, clock)
    for second in range(seconds):
        clock.now_s = float(second)
        demo.step()
        demo.snapshot()
        if second % 5 == 4:
            demo.decide()
        if nodes > 5 and second % 29 == 11:
            demo.duel()
        if second % 61 == 7:
            demo.recent.event(f"{demo.name(second % nodes)} joined from http://10.0.0.{second % nodes + 2}:9000")
        if second % 83 == 30:
            demo.recent.event("the ledger answers again after 2 s")
    return demo


async def serve(port, nodes, speed):
    """Serve the page until interrupted."""
    feed = Feed()
    server = Server(feed.handle, Limits(), lambda _: None)
    port = await server.listen("127.0.0.1", port)
    print(f"http://127.0.0.1:{port}/", flush=True)
    demo = lived(nodes, speed=speed)
    while True:
        demo.clock.now_s += 1.0
        demo.step()
        if int(demo.clock.now_s) % 5 == 4:
            demo.decide()
        if nodes > 5 and int(demo.clock.now_s) % 29 == 11:
            demo.duel()
        feed.publish(demo.snapshot())
        await asyncio.sleep(1.0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=9009)
    parser.add_argument("--nodes", type=int, default=6)
    parser.add_argument("--speed", type=float, default=1.0)
    words = parser.parse_args()
    asyncio.run(serve(words.port, words.nodes, words.speed))
