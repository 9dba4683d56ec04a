"""Event in, commands out: own requests are placed or offered, offers accepted or declined, the queue feeds the engine.

The decisions are those of market/provider.py, the same lines that run in the simulator; here is only who is asked next.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from live_bridge.brain.belief import MARKET, NONE, SELF, Belief
from live_bridge.brain.contest import Contests
from live_bridge.brain.engine import EngineView
from live_bridge.brain.line import Line
from live_bridge.brain.work import COPY, GUEST, JUDGE, OFFERED, PROMISED, QUEUED, REMOTE, RUNNING, USER, Work, losses
from market import gossip, provider, serving, stake
from market.action import MASK_SIZE, intent_of_action, intent_of_paper, write_mask
from market.observation import OBSERVATION_SIZE, write_observation
from market.profile import Profile
from market.profile import to_record as profile_record
from market.provider import NODE
from market.rule import records
from market.terms import Terms

DOWN_PATIENCE_S = 5.0
"""Market seconds that work waits for an engine that does not answer."""

Event = Sequence[Any]
Command = list[Any]


class Setup(NamedTuple):
    """All that a mind is made of; the journal's first line holds it."""

    me: str
    terms: Terms
    profile: Profile
    slo_s: float
    tick_s: float
    key: int  # of all chance
    incarnation: int  # grows with every start of the node
    duel_deadline_s: float


class Brain:
    """A provider's state and what it does about events."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.node = records(NODE, 1)[0]
        provider.open_node(self.node, setup.slo_s)
        self.profile = profile_record(setup.profile)[0]
        self.engine = EngineView(self.profile)
        self.belief = Belief(setup.me, setup.terms, setup.incarnation, setup.key)
        self.contests = Contests(self.belief, setup.duel_deadline_s)
        self.works: dict[str, Work] = {}
        self.line = Line(self.node, self.engine, self.belief)
        self.paper = True  # the paper's rules steer until a policy has decided
        self.decided_s = 0.0
        self.seen = np.empty((0, 0)), np.empty((0, 0))  # what a policy was asked about last
        self.down_s: float | None = None  # since when the engine has not answered; None = it does
        intent_of_paper(self.node, self.belief.terms, 0.0, 0, 0)
        self._on: dict[str, Callable[..., list[Command]]] = {
            "arrive": self._arrive,
            "offered": self._offered,
            "begin": self._begin,
            "answer": self._answer,
            "end": self._end,
            "retry": self._retry,
            "load": self._load,
            "down": self._down,
            "up": self._up,
            "blind": self._blind,
            "tick": self._tick,
            "asked": self._asked,
            "decide": self._decide,
            "paper": self._paper,
            "gossip": self._gossip,
            "heard": self._heard,
            "mute": self._mute,
            "leaving": self._leaving,
            "forget": self._forget,
            "accounts": self._accounts,
            "vote": self._vote,
            "dueled": self._dueled,
        }

    def on(self, event: Event) -> list[Command]:
        """React to one event: [name, now, ...], each described at its method. Returns commands in order."""
        return self._on[event[0]](*event[1:])

    # -- own requests

    def _arrive(self, now: float, work_id: str, prompt: int, forecast: int) -> list[Command]:
        """An own request: prompt tokens, forecast tokens of its answer."""
        provider.note_arrival(self.node, prompt, forecast)
        work = Work(work_id, USER, prompt, forecast, now, now + self.setup.slo_s)
        self.works[work_id] = work
        return self._dispatch(work, now)

    def _dispatch(self, work: Work, now: float) -> list[Command]:
        node, record = self.node, self.engine.record
        alone = len(self.belief.ids) == 1 and node.p_queue >= 1.0  # whatever the forecast, the work stays here
        forecast_s = 0.0 if alone else provider.forecast_here(node, record, self.profile, work.prompt, work.forecast)
        decision = self._decision(work, forecast_s, now)
        return self._offer(work, now) if decision == provider.OFFER else self._keep(work, int(decision == provider.LOCAL))

    def _decision(self, work: Work, forecast_s: float, now: float) -> int:
        node = self.node
        use = serving.usage(self.engine.record, self.profile)
        u_offload = self.belief.chance(MARKET) if node.p_offload < 1.0 else 0.0
        u_queue = self.belief.chance(MARKET) if node.p_queue < 1.0 else 0.0
        free = self.belief.accounts[SELF].credit_micro
        may_offer = len(self.belief.ids) > 1 and work.kind == USER and node.online == 1 and free >= self.price(work)
        if self.down_s is not None and work.kind == USER:
            return provider.OFFER if may_offer else provider.HOLD
        found: int = provider.on_arrival(node, use, forecast_s, work.deadline_s - now, may_offer, u_offload, u_queue)
        return found

    def _keep(self, work: Work, placed: int, *, first: bool = False) -> list[Command]:
        work.peer = NONE
        return self.line.put(work, placed, first=first)

    def price(self, work: Work) -> int:
        """What delegating `work` costs (micro-credits)."""
        cost: int = provider.price(self.belief.terms, work.prompt, work.forecast)
        return cost

    def _offer(self, work: Work, now: float) -> list[Command]:
        work.state = OFFERED
        work.offered_s = now
        work.asked = 0
        if work.kind == USER:
            work.banned = [SELF]
        return self._ask_next(work)

    def _ask_next(self, work: Work) -> list[Command]:
        """Ask the next drawn peer, or take the refusal when there is none left."""
        if work.asked < self.belief.terms.candidates:
            peer = self.belief.draw(work.banned)
            if peer != NONE:
                work.banned.append(peer)
                work.asked += 1
                work.peer = peer
                return [["ask", work.id, self.belief.ids[peer], self.price(work)]]
        if work.kind == COPY:
            del self.works[work.id]
            return [["drop", work.id], *self.contests.answered(work, 0)]
        provider.note_offer(self.node, 0)
        u = self.belief.chance(MARKET) if self.node.p_queue < 1.0 else 0.0
        placed = 1 if provider.place_refused(self.node, u) == provider.LOCAL else 0
        return self._keep(work, placed, first=work.waited == 1)

    def _answer(self, now: float, work_id: str, peer: str, answer: str) -> list[Command]:
        """A peer's answer to an offer: yes, no, silent, or broke (it took the work and failed before its first byte)."""
        work = self.works.get(work_id)
        if work is None or work.state not in {OFFERED, REMOTE}:
            return []
        if answer in {"silent", "broke"}:
            self.belief.mute(peer, now)
        if answer != "yes":
            if work.state == REMOTE:
                self.node.away -= 1
            work.state = OFFERED
            return self._ask_next(work)
        work.state = REMOTE
        work.peer = self.belief.place(peer)
        self.node.away += 1
        out: list[Command] = [["send", work_id, peer]]
        if work.kind != USER:
            return out
        provider.note_offer(self.node, 1)
        rate = self.belief.terms.duel_rate
        if rate > 0.0 and work.duel is None and self.belief.chance(MARKET) < rate:
            copy = self.contests.begin(work, now)
            self.works[copy.id] = copy
            out += [["copy", work_id, copy.id], *self._offer(copy, now)]
        return out

    def _retry(self, now: float, work_id: str) -> list[Command]:
        """Own work whose executor failed for good: it is looked at anew, as if it had just come."""
        work = self.works.get(work_id)
        if work is None:
            return []
        if work.state == REMOTE:
            self.node.away -= 1
        if work.state == RUNNING:
            self.engine.end(work)
        if work.kind != USER:
            del self.works[work_id]
            return self.contests.answered(work, 0)
        out = self.contests.answered(work, 0)
        work.state = OFFERED
        work.peer = NONE
        return [*out, *self._dispatch(work, now)]

    # -- guests

    def _offered(self, now: float, work_id: str, origin: str, size: Sequence[int], remaining_s: float, kind: str) -> list[Command]:
        """A peer's offer: (prompt, forecast) tokens and the seconds left; kind is guest or judge."""
        node = self.node
        node.offers_received += 1
        prompt, forecast = size
        record = self.engine.record
        forecast_s = provider.forecast_here(node, record, self.profile, prompt, forecast)
        u = self.belief.chance(MARKET) if node.p_accept < 1.0 else 0.0
        # a judge was drawn for its stake: whoever commits stake has agreed to vote
        takes = kind == JUDGE or provider.on_offer(node, serving.usage(record, self.profile), forecast_s, remaining_s, u)
        if not takes or node.online == 0 or self.down_s is not None:
            node.offers_declined += 1
            return [["no", work_id]]
        work = Work(work_id, JUDGE if kind == JUDGE else GUEST, prompt, forecast, now, now + remaining_s)
        work.state = PROMISED
        work.peer = self.belief.place(origin)
        self.works[work_id] = work
        node.guests += 1
        self.line.count(work, 1)
        return [["yes", work_id]]

    def _begin(self, now: float, work_id: str) -> list[Command]:
        """The content of accepted work is here: it may run."""
        work = self.works[work_id]
        assert work.state == PROMISED
        self.line.count(work, -1)
        return self.line.put(work, 1)

    def _end(self, now: float, work_id: str, ok: int, latency_s: float) -> list[Command]:
        """Work is over, wherever it was: answered (ok 1), or failed, cancelled or never begun (ok 0)."""
        work = self.works.pop(work_id, None)
        if work is None:
            return []
        node = self.node
        if work.state == RUNNING:
            self.engine.end(work)
        elif work.state == QUEUED:
            self.line.remove(work)
        elif work.state == PROMISED:
            self.line.count(work, -1)
        elif work.state == REMOTE:
            node.away -= 1
        if work.kind in {GUEST, JUDGE}:
            node.guests -= 1
            node.income_micro += ok * self.price(work) if work.kind == GUEST else ok * self.belief.terms.judge_fee_micro
        elif work.state == REMOTE and ok:
            node.spend_micro += self.price(work)
            if work.kind == USER:
                provider.note_delegated(node, latency_s)
        return [*self.contests.answered(work, ok), *self.line.feed()]

    def _load(self, now: float, running: int, waiting: int, usage: float) -> list[Command]:
        """A fresh reading of the engine."""
        self.engine.reading(running, waiting, usage)
        return self.line.feed()

    def _down(self, now: float) -> list[Command]:
        """The engine does not answer: own work is offered, nothing is taken."""
        self.down_s = now
        self.line.closed = True
        return []

    def _up(self, now: float) -> list[Command]:
        """The engine answers (again)."""
        self.down_s = None
        self.line.closed = False
        return self.line.feed()

    def _blind(self, now: float) -> list[Command]:
        """There is no reading of the engine that can be believed."""
        self.engine.forget_reading()
        return self.line.feed()

    # -- time

    def _tick(self, now: float, span_s: float, counted: dict[str, int]) -> list[Command]:
        """Upkeep after `span_s` market seconds; `counted` tokens of answers that are streamed."""
        node = self.node
        self.engine.progress(span_s, counted)
        provider.tick(node, span_s)
        if self.paper:
            record = self.engine.record
            intent_of_paper(node, self.belief.terms, serving.usage(record, self.profile), record.waiting, node.queued)
        out = self._steer(span_s)
        for work in reversed(self.line.review(now, self._decision)):
            out += self._offer(work, now)
        out += self.line.feed()
        out += self._give_up(now)
        out += self.contests.tick(now)
        return out

    def _give_up(self, now: float) -> list[Command]:
        """Own and accepted work that waits for an engine which has been down for DOWN_PATIENCE_S has no executor."""
        if self.down_s is None or now - self.down_s < DOWN_PATIENCE_S:
            return []
        return [["fail", work.id, "the engine is down and no peer takes work"] for work in self.line.works]

    def _steer(self, span_s: float) -> list[Command]:
        """Move stake towards its target, as market/ledger.py's steer_stake: bounded by rate, stake and free credit."""
        node = self.node
        account = self.belief.accounts[SELF]
        target: int = stake.goal(node, self.belief.wealth(), self.belief.terms.bond_micro)
        most = int(self.belief.terms.stake_rate_micro * span_s)
        gap = target - account.stake_micro
        if gap > 0 and min(gap, most, account.credit_micro) > 0:
            return [["stake", min(gap, most, account.credit_micro)]]
        return [["unstake", min(-gap, most)]] if gap < 0 else []

    # -- decisions

    def _asked(self, now: float, loads: int) -> list[Command]:
        """A policy is asked about what is `seen` here; `loads` were in force before it. Its answer follows, or never."""
        self.seen = self.observe(now)
        return []

    def _decide(self, now: float, accept: int, forward: int, commit: int) -> list[Command]:
        """The policy's action: its intent is in force from here."""
        intent_of_action(self.node, accept, forward, commit)
        self.paper = False
        self.decided_s = now
        return []

    def _paper(self, now: float) -> list[Command]:
        """The paper's rules steer from here, until a policy decides."""
        record = self.engine.record
        usage = serving.usage(record, self.profile)
        intent_of_paper(self.node, self.belief.terms, usage, record.waiting, self.node.queued)
        self.paper = True
        return []

    def observe(self, now: float) -> tuple[np.ndarray, np.ndarray]:
        """What a policy is asked with: observation (1, OBSERVATION_SIZE) float32 and action mask (1, MASK_SIZE) int8."""
        node = self.node
        account = self.belief.accounts[SELF]
        cost = provider.price(self.belief.terms, int(node.mean_prompt), int(node.mean_forecast))
        oldest_s = now - self.line.works[0].arrival_s if self.line.works else 0.0
        seen = [0.0] * OBSERVATION_SIZE
        mask = [0] * MASK_SIZE
        record, gap_s = self.engine.record, now - self.decided_s
        write_observation(seen, node, record, self.profile, account, cost, oldest_s, gap_s)
        write_mask(mask, 0, node.online, account.credit_micro, cost)
        return np.array([seen], np.float32), np.array([mask], np.int8)

    # -- the market

    def _gossip(self, now: float) -> list[Command]:
        """A gossip round: post the own row, let silence count, sum up the market, name a partner."""
        belief = self.belief
        provider.post(belief.rows[SELF], self.node, self.engine.record, self.profile, now, 1)
        out: list[Command] = [each for peer in belief.age(now) for each in losses(self.works, peer, belief.places[peer])]
        provider.size_up(self.node, self.profile)
        belief.survey(self.node, now)
        partner = belief.partner()
        if partner != NONE:
            out.append(["gossip", belief.ids[partner]])
        return out

    def _heard(self, now: float, news: Sequence[Sequence[Any]]) -> list[Command]:
        """News of peers, verified: see Belief.hear."""
        self.belief.hear(now, news)
        self.belief.survey(self.node, now)
        return []

    def _mute(self, now: float, peer: str) -> list[Command]:
        """A peer did not answer."""
        self.belief.mute(peer, now)
        return []

    def _leaving(self, now: float, peer: str) -> list[Command]:
        """A peer (or this node itself) is leaving: no more work for it."""
        if peer == self.setup.me:
            self.node.online = 0
            self.node.accept_ceiling = -1.0
        else:
            self.belief.leave(peer, now)
        return []

    def _forget(self, now: float, peer: str) -> list[Command]:
        """A peer has been silent for long: a stranger without an account leaves its place to others."""
        if all(self.belief.ids[work.peer] != peer for work in self.works.values()):
            self.belief.forget(peer)
        return []

    def _accounts(self, now: float, rows: Sequence[Sequence[Any]]) -> list[Command]:
        """Balances by the ledger: (id, credit, stake, unbonding, escrow), micro-credits."""
        self.belief.balances(rows)
        return []

    def _vote(self, now: float, duel: str, judge: str, verdict: str) -> list[Command]:
        """A judge's verdict: A, B, abstain, or absent."""
        return self.contests.vote(duel, judge, verdict)

    def _dueled(self, now: float, won: int) -> list[Command]:
        """A duel about work that was done here has ended: won (1) or lost (0)."""
        self.node.duels_won += won
        self.node.duels_lost += 1 - won
        return []

    def alive(self) -> list[str]:
        """Ids of the peers believed alive."""
        belief = self.belief
        return [belief.ids[k] for k in range(1, belief.providers) if belief.status(k) == gossip.ALIVE]
