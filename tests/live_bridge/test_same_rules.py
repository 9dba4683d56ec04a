"""A live mind in a provider's seat of the simulator: given what the provider knows and the same chance, it decides the same."""

import copy
from collections import Counter, deque
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from envs.wwwserve import load, offers, step
from envs.wwwserve.batch import Batch
from envs.wwwserve.state import OFFERED, QUEUED, RUNNING
from live_bridge.brain import Brain
from tests.live_bridge.minds import setup

SEAT = 0
"""The provider whose place in the simulator's tables is that of oneself in a mind."""
NAMES = ("me", "p1", "p2", "p3")


def _market(policy: str) -> Batch:
    scenario = replace(load.scenario("paper-2"), horizon_s=300.0, arrivals_until_s=300.0)
    rates = ((0.1, 2.0), (1.0, 0.3), (1.0, 0.2), (1.0, 0.2))  # first the others are busy, then the one that is watched
    providers = [
        replace(group, demand=replace(group.demand, schedule=[(120.0, first, first), (300.0, then, then)]))
        for group, (first, then) in zip(scenario.providers, rates, strict=True)
    ]
    scenario = replace(scenario, providers=providers)
    terms = replace(load.terms(), duel_rate=0.0)
    batch = Batch(scenario, terms, load.profiles(), networks=1, seed=3)
    if policy == "paper":
        batch.pin("paper")
    return batch


class Seat:
    """Runs the simulator's own decisions and, with a copy of what provider SEAT knew before, a mind's."""

    def __init__(self, batch: Batch) -> None:
        self.world = batch.world
        self.brain = Brain(setup(terms=batch.terms))
        self.compared: Counter[str] = Counter()
        self.drawn: list[float] = []

    def sit_down(self, now: float) -> Brain:
        """A mind that knows exactly what the provider knows."""
        w, brain = self.world, self.brain
        brain.node = copy.copy(w.node[SEAT])
        brain.profile = brain.engine.profile = w.profile[SEAT]
        brain.engine.record = copy.copy(w.engine[SEAT])
        brain.line._node = brain.node
        belief = brain.belief
        belief.ids, belief.places = list(NAMES), {name: k for k, name in enumerate(NAMES)}
        belief.rows = [copy.copy(w.row[k]) for k in range(len(NAMES))]
        belief.accounts = [copy.deepcopy(w.account[k]) for k in range(len(NAMES))]
        belief.terms = w.terms[0]
        brain.works, brain.line.works = {}, deque()
        return brain

    def chance(self, *_: Any) -> float:
        return self.drawn.pop(0)


@pytest.fixture(params=["paper", "levels"])
def seat(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[Seat, Batch]:
    batch = _market(request.param)
    seat = Seat(batch)
    watch = Watch(seat, monkeypatch)
    monkeypatch.setattr(offers, "dispatch", watch.dispatch)
    monkeypatch.setattr(step, "on_offer", watch.on_offer)
    return seat, batch


class Watch:
    """Stands in for the simulator's `dispatch` and `on_offer`."""

    def __init__(self, seat: Seat, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seat = seat
        self.offers = {name: getattr(offers, name) for name in ("dispatch", "on_offer", "chance")}
        monkeypatch.setattr(offers, "chance", self.chance)

    def chance(self, *args: Any) -> float:
        u = self.offers["chance"](*args)
        self.seat.drawn.append(u)
        return u

    def dispatch(self, w: Any, n: int, p: int, r: int, now: float) -> None:
        """Own work: where it goes first."""
        if p != SEAT:
            self.offers["dispatch"](w, n, p, r, now)
            return
        brain, request = self._before(now), w.request[r]
        size = request.prompt_tokens, request.forecast_tokens
        self.seat.drawn.clear()
        self.offers["dispatch"](w, n, p, r, now)
        brain.belief.chance = self.seat.chance  # type: ignore[method-assign]
        brain.node.arrivals -= 1  # the simulator has noted the arrival already
        brain.node.mean_prompt, brain.node.mean_forecast = w.node[SEAT].mean_prompt, w.node[SEAT].mean_forecast
        brain.setup = brain.setup._replace(slo_s=request.deadline_s - now)
        commands = brain.on(["arrive", now, "r", *size])
        if request.state == OFFERED:
            expected = [["ask", "r", NAMES[request.banned[request.banned_count - 1]], brain.price(brain.works["r"])]]
        else:
            assert request.state in {QUEUED, RUNNING}
            assert brain.works["r"].placed == request.placed
            expected = [["start", "r"]] if request.state == RUNNING and not w.node[SEAT].queued else []
            commands = commands if request.state == RUNNING else []
        assert commands == expected
        self.seat.compared["offered" if request.state == OFFERED else "kept"] += 1

    def on_offer(self, w: Any, n: int, r: int, q: int, now: float) -> None:
        """A peer's work: taken or declined."""
        if q != SEAT:
            self.offers["on_offer"](w, n, r, q, now)
            return
        brain, request = self._before(now), w.request[r]
        size, left_s = [request.prompt_tokens, request.forecast_tokens], request.deadline_s - now
        self.seat.drawn.clear()
        before = w.node[SEAT].guests
        self.offers["on_offer"](w, n, r, q, now)
        brain.belief.chance = self.seat.chance  # type: ignore[method-assign]
        answer = brain.on(["offered", now, "g", NAMES[request.origin], size, left_s, "guest"])[0][0]
        assert answer == ("yes" if w.node[SEAT].guests > before else "no")
        self.seat.compared[answer] += 1

    def _before(self, now: float) -> Brain:
        from market import serving

        w = self.seat.world
        serving.advance(w.engine[SEAT], w.profile[SEAT], w.request, now)
        return self.seat.sit_down(now)


def test_a_live_mind_decides_as_the_simulated_provider_in_its_seat(seat: tuple[Seat, Batch]) -> None:
    seat_of, batch = seat
    batch.reset(3)
    levels = np.array([[[3, 3, 2], [3, 2, 2], [2, 1, 3], [4, 2, 1]]])
    for _ in range(60):
        allowed = np.take_along_axis(batch.masks.reshape(1, 4, 3, 5), levels[..., None], axis=3)[..., 0]
        batch.step(np.where(allowed != 0, levels, 0))
    assert seat_of.compared["kept"] > 20
    assert seat_of.compared["offered"] > 20
    assert seat_of.compared["yes"] + seat_of.compared["no"] > 5
