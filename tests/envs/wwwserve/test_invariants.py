"""What holds at every step of every world: money, requests, slots, sight, order of time."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from envs.wwwserve import load
from envs.wwwserve.batch import Batch
from envs.wwwserve.scenario import Burst
from envs.wwwserve.state import FREE, USER
from market.ledger import TRANCHES
from market.observation import OBSERVATION_NAMES, OBSERVATION_TABLE
from tests.envs.wwwserve.play import ROGUES, ROUGH, SCENARIOS, SMALL, Players, make, scenario_of, terms_of

LOW = np.array([entry.low for entry in OBSERVATION_TABLE], np.float32)
HIGH = np.array([entry.high for entry in OBSERVATION_TABLE], np.float32)
ONLINE = OBSERVATION_NAMES.index("online")
MONEY = ("credit_micro", "stake_micro", "escrow_micro", "unbonding_micro")
worlds = st.sampled_from([*SMALL, ROUGH, ROUGH, ROUGH, ROGUES])


def endowments(batch: Batch) -> np.ndarray:
    """What each provider of a network begins with, in credits."""
    ratios = [group.standing.wealth for group in batch.scenario.providers for _ in range(group.count)]
    return (batch.terms.initial_credit + batch.terms.initial_stake) * np.array(ratios)


class Watch:
    """Looks at a batch after each step."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.shape = (batch.networks, batch.providers)
        self.endowment = round(float(endowments(batch).sum()) * 1_000_000)
        self.before = np.zeros((3, batch.networks), np.int64)
        self.parts = np.zeros((batch.networks, batch.providers, 4))

    def look(self) -> None:
        state = self.batch.save()
        self.money(state["account"])
        self.requests(state)
        self.sight(state)
        self.time(state)

    def money(self, account: np.ndarray) -> None:
        sums = sum(account[name] for name in MONEY)
        assert sums.reshape(self.shape).sum(axis=1).tolist() == [self.endowment] * self.shape[0]
        assert all((account[name] >= 0).all() for name in MONEY)
        live = np.arange(TRANCHES) < account["tranches"][:, None]
        assert (np.where(live, account["tranche_micro"], 0).sum(axis=1) == account["unbonding_micro"]).all()

    def requests(self, state: dict[str, np.ndarray]) -> None:
        net, request = state["net"], state["request"].reshape(self.shape[0], -1)
        used = request["state"] != FREE
        assert (net["free"] + used.sum(axis=1) == request.shape[1]).all()
        under_way = (used & (request["kind"] == USER) & (request["answered"] == 0)).sum(axis=1)
        assert (net["arrived"] == net["answered"] + net["failed"] + under_way).all()
        now = np.stack([net["arrived"], net["answered"], net["failed"]])
        assert (now >= self.before).all() or (net["step"] == 0).any()
        self.before = now

    def sight(self, state: dict[str, np.ndarray]) -> None:
        seen, masks = self.batch.observations, self.batch.masks
        assert np.isfinite(seen).all() and (seen >= LOW).all() and (seen <= HIGH).all()
        assert np.isin(masks, (0, 1)).all() and masks[..., [0, 5, 10]].all()
        offline = state["node"]["online"].reshape(self.shape) == 0
        assert (seen[..., ONLINE] == ~offline).all()
        assert (masks[offline].sum(axis=1) == 3).all()
        assert np.isfinite(self.batch.rewards).all() and np.isfinite(self.batch.reward_parts).all()

    def time(self, state: dict[str, np.ndarray]) -> None:
        now = state["net"]["step"] * self.batch.scenario.control_s
        assert (state["wake"].reshape(self.shape) >= now[:, None]).all(), "an event lies in the past"
        for n, net in enumerate(state["net"]):
            messages = state["event"].reshape(self.shape[0], -1)[n][: net["events"]]
            assert (messages["time_s"] >= now[n]).all()


@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(name=worlds, seed=st.integers(0, 2**31), networks=st.integers(1, 3))
def test_money_requests_sight_and_time_are_in_order_at_every_step(name: str, seed: int, networks: int) -> None:
    batch = make(name, networks=networks, seed=seed)
    watch, players = Watch(batch), Players(networks, first=seed % 1000)
    watch.look()
    for _ in range(min(batch.steps_per_episode, 120)):
        batch.step(players.act(batch.masks))
        watch.look()


@pytest.mark.parametrize("name", [*SCENARIOS, ROUGH, ROGUES])
def test_the_record_of_an_episode_agrees_with_the_counts_and_rewards(name: str) -> None:
    batch = make(name, networks=2, seed=5, record=True, autoreset=False)
    players, parts = Players(2), np.zeros((2, batch.providers, 4))
    for step in range(batch.steps_per_episode):
        batch.step(players.act(batch.masks))
        parts += batch.reward_parts
        assert batch.truncated.tolist() == [step == batch.steps_per_episode - 1] * 2
    rows, totals = batch.outcomes(), batch.totals()
    for n in range(2):
        check_record(batch, rows[rows["network"] == n], {key: int(values[n]) for key, values in totals.items()}, parts[n])
    wealth = batch.accounts()["wealth"]
    assert (endowments(batch) + parts[..., 2] == pytest.approx(wealth)) and (
        batch.counters()["executed_tokens"] == parts[..., 3]
    ).all()


def check_record(batch: Batch, rows: np.ndarray, totals: dict[str, int], parts: np.ndarray) -> None:
    """One network's rows against what was counted and rewarded."""
    done, failed = rows[rows["status"] == 1], rows[rows["status"] == 2]
    assert (len(rows), len(done), len(failed)) == (totals["arrived"], totals["answered"], totals["failed"]) and len(rows) > 0
    assert (np.diff(rows["arrival_s"]) >= 0).all() and rows["arrival_s"].min() >= 0
    assert rows["arrival_s"].max() < batch.scenario.arrivals_until_s
    assert (done["ttft_s"] > 0).all() and (done["ttft_s"] <= done["latency_s"] + 1e-9).all()
    assert np.isinf(rows["latency_s"][rows["status"] != 1]).all()
    assert ((done["executor"] != done["origin"]) == (done["delegated"] == 1)).all()
    met = done["latency_s"] <= done["slo_s"]
    assert np.bincount(done["origin"][met], minlength=batch.providers).tolist() == parts[:, 0].tolist()
    horizon_s = batch.scenario.horizon_s
    late = (rows["status"] == 2) | ((rows["status"] == 1) & (rows["latency_s"] > rows["slo_s"]))
    late |= (rows["status"] == 0) & (rows["arrival_s"] + rows["slo_s"] <= horizon_s)
    assert np.bincount(rows["origin"][late], minlength=batch.providers).tolist() == parts[:, 1].tolist()


def test_chance_of_demand_does_not_depend_on_decisions() -> None:
    rows = []
    for first in (0, 50):
        batch, players = make("wwwserve", networks=2, seed=5, record=True, autoreset=False), Players(2, first)
        for _ in range(batch.steps_per_episode):
            batch.step(players.act(batch.masks))
        rows.append(batch.outcomes())
    for name in ("network", "origin", "arrival_s", "prompt_tokens", "output_tokens"):
        assert (rows[0][name] == rows[1][name]).all(), name


def test_providers_that_crash_in_bursts_see_time_run_forward() -> None:
    whole = scenario_of(ROUGH)
    groups = [
        replace(
            group, demand=replace(group.demand, burst=Burst(20.0, 10.0, 30.0)), online=replace(group.online, up_s=30.0, down_s=60.0)
        )
        for group in whole.providers
    ]
    run_watched(replace(whole, providers=groups))


def test_a_trace_goes_on_where_the_clock_stands_after_a_crash(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n" + "".join(f"{t / 4},10,20\n" for t in range(1600)), encoding="utf-8")
    whole = scenario_of(ROUGH)
    groups = [
        replace(group, demand=replace(group.demand, trace=str(trace)), online=replace(group.online, up_s=60.0))
        for group in whole.providers
    ]
    batch = run_watched(replace(whole, providers=groups))
    assert 0 < int(batch.totals()["arrived"].sum()) < 2 * 1600


def run_watched(scenario: Any) -> Batch:
    batch = Batch(scenario, terms_of(ROUGH), load.profiles(), networks=2, seed=9, record=True, autoreset=False)
    watch, players = Watch(batch), Players(2)
    for _ in range(batch.steps_per_episode):
        batch.step(players.act(batch.masks))
        watch.look()
    rows, arrived = batch.outcomes(), batch.totals()["arrived"]
    for n in range(2):
        times = rows["arrival_s"][rows["network"] == n]
        assert len(times) == arrived[n] > 0 and (np.diff(times) >= 0).all()
    return batch
