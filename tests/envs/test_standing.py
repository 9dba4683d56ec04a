"""What providers bring to a market and whom they hold with: wealth, a share of an engine or none, a coalition."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from envs.wwwserve import load
from envs.wwwserve.batch import Batch
from envs.wwwserve.scenario import Profile, Scenario, Standing
from market import provider, serving
from market.duel import FOR_A, FOR_B
from market.observation import OBSERVATION_NAMES
from tests.envs.stage import GIVE, MICRO, PROFILES, STAY, TAKE, TRADE, State, all_is_over, everything, market, play, who
from tests.envs.wwwserve.play import Players, make
from tests.market.rows import TERMS, table

MONEY = ("credit_micro", "stake_micro", "escrow_micro", "unbonding_micro")
RICH, POOR, WHOLE = Standing(3.0, 1.0, None), Standing(0.1, 1.0, None), Standing(1.0, 1.0, None)
ASKS_ONLY = Standing(1.0, 0.0, None)
NAMES = ("b_s", "c_s", "d_s", "q_s")


def profiles_of(scenario: Scenario, **terms: Any) -> np.ndarray:
    """The engines at the start of an episode."""
    return Batch(scenario, replace(TERMS, **terms), PROFILES).save()["profile"]


def test_wealth_is_a_ratio_to_the_terms_credit_and_stake() -> None:
    batch = Batch(market(who(standing=RICH), who(standing=POOR), who()), TERMS, PROFILES)
    accounts = batch.accounts()
    assert accounts["credit"][0].tolist() == [300.0, 10.0, 100.0] and accounts["stake"][0].tolist() == [6.0, 0.2, 2.0]


def test_ten_sybils_own_together_what_one_provider_owns() -> None:
    batch = make("sybils")
    wealth = batch.accounts()["wealth"][0]
    assert wealth[7:].sum() == pytest.approx(wealth[0]) and len(wealth) == 17


def test_unequal_wealth_is_conserved_to_the_micro_credit() -> None:
    seen: list[int] = []

    def count(state: State) -> None:
        seen.append(sum(int(state["account"][name].sum()) for name in MONEY))

    scenario = market(who(1.0, standing=RICH), who(0.5, standing=POOR), who(count=3, standing=Standing(1 / 3, 1.0, None)))
    play(scenario, *[TRADE] * 5, check=count, duel_rate=0.5, duel_ttl_s=30.0)
    # a third of 102 credits is rounded by credit and by stake, once
    assert set(seen) == {sum(round(part * MICRO) for part in (300, 6, 10, 0.2)) + 3 * (round(1e8 / 3) + round(2e6 / 3))}


def test_who_has_nothing_stays_at_home() -> None:
    batch = play(market(who(1.0, standing=Standing(0.0, 1.0, None)), who()), GIVE, TAKE, duel_rate=0.0)
    assert not batch.outcomes()["delegated"].any() and batch.accounts()["wealth"][0].tolist() == [0.0, 102.0]


@pytest.mark.parametrize("share", [0.125, 0.25, 0.5])
def test_a_share_of_an_engine_has_its_share_of_room_and_pays_for_the_others(share: float) -> None:
    whole, part = profiles_of(market(who(standing=WHOLE), who(standing=Standing(1.0, share, None))))
    assert part["kv_blocks"] == int(1024 * share) and part["max_num_seqs"] == int(8 * share)
    assert part["max_num_batched_tokens"] == int(2048 * share)
    for name in NAMES:
        assert part[name] == pytest.approx(whole[name] / share)
    assert part["a_s"] == whole["a_s"] and part["quality"] == whole["quality"]


def test_a_whole_engine_is_the_profile_to_the_bit() -> None:
    (engine,) = profiles_of(market(who(standing=WHOLE)))
    profile = PROFILES["cpu_tiny"]
    assert all(engine[name] == getattr(profile, name) for name in engine.dtype.names)


def capacity(profile: Profile, share: float) -> float:
    """Output tokens/s of a full batch of typical requests on a share of an engine."""
    scenario = replace(market(who(standing=Standing(1.0, share, None))), requests_max=64)
    whole = replace(scenario, providers=[replace(scenario.providers[0], profiles=["it"])])
    state = Batch(whole, TERMS, {"it": profile}).save()
    return float(state["node"]["capacity_tps"][0])


@pytest.mark.parametrize("name", ["a100_qwen3_8b", "rtx6000ada_qwen3_8b"])
def test_ten_tenths_of_an_engine_do_what_the_whole_does(name: str) -> None:
    profile = load.profiles({name})[name]
    assert 10.0 * capacity(profile, 0.1) == pytest.approx(capacity(profile, 1.0), rel=0.05)


def test_who_only_asks_runs_nothing_and_takes_nothing() -> None:
    batch = play(market(who(1.0, standing=ASKS_ONLY), who(count=2)), GIVE, TAKE, TAKE, check=everything, duel_rate=0.0)
    rows = batch.outcomes()
    assert (rows["status"] == 1).all() and (rows["executor"] != 0).all()
    assert batch.counters()["executed_tokens"][0, 0] == 0


def test_who_only_asks_and_finds_nobody_is_never_answered() -> None:
    batch = play(market(who(1.0, standing=ASKS_ONLY), who()), STAY, STAY, check=everything)
    assert (batch.outcomes()["status"] == 0).all() and batch.reward_parts.shape == (1, 2, 4)
    assert batch.save()["node"]["queued"][0] == len(batch.outcomes())


def test_who_only_asks_declines_even_when_it_would_accept_always() -> None:
    batch = play(market(who(1.0), who(standing=ASKS_ONLY)), GIVE, TAKE, duel_rate=0.0)
    counters = batch.counters()
    assert counters["offers_received"][0, 1] == counters["offers_declined"][0, 1] > 0
    assert not batch.outcomes()["delegated"].any()


def test_who_only_asks_says_so_in_its_sight() -> None:
    batch = Batch(market(who(standing=ASKS_ONLY), who()), TERMS, PROFILES)
    asker, worker = (dict(zip(OBSERVATION_NAMES, batch.observations[0, p].tolist(), strict=True)) for p in (0, 1))
    assert asker["kv_usage"] == 1.0 and worker["kv_usage"] == 0.0
    assert asker["completion"] > 0.999 and asker["capacity"] < 1e-6 < worker["capacity"]


def test_who_only_asks_under_the_papers_rules_hands_on_all_it_can() -> None:
    scenario = market(who(1.0, standing=ASKS_ONLY), who(count=3))
    batch = Batch(scenario, TERMS, PROFILES, seed=3, record=True, autoreset=False)
    batch.pin("paper")
    for _ in range(scenario.steps):
        batch.step(np.zeros((1, 4, 3), np.int64))
    rows = batch.outcomes()
    assert (rows["status"] == 1).mean() > 0.95 and (rows["executor"][rows["status"] == 1] != 0).all()


def test_an_asker_that_crashes_comes_back_without_an_engine() -> None:
    scenario = market(who(1.0, standing=ASKS_ONLY, up_s=15.0), who(count=2))
    batch = play(scenario, GIVE, TAKE, TAKE, check=everything, seed=4, duel_rate=0.0)
    assert batch.counters()["executed_tokens"][0, 0] == 0 and batch.save()["engine"]["blocks_used"][0] == 1024
    assert set(batch.outcomes()["status"].tolist()) == {1, 2}


@pytest.mark.parametrize("dispatch", ["paper_central", "central"])
def test_central_schedulers_send_nothing_to_who_only_asks(dispatch: str) -> None:
    batch = Batch(market(who(1.0, standing=ASKS_ONLY), who()), TERMS, PROFILES, dispatch=dispatch, record=True, autoreset=False)
    for _ in range(batch.steps_per_episode):
        batch.step(np.zeros((1, 2, 3), np.int64))
    rows = batch.outcomes()
    assert (rows["executor"] == 1).all() and (rows["status"] == 1).all()


def ring_votes(coalition: str | None) -> tuple[list[tuple[int, int, int]], int]:
    """Duels of a ring of three bad providers and three good ones: (judge, executors) by vote, and the ring's wins."""
    good, bad = replace(PROFILES["cpu_tiny"], quality=50.0), replace(PROFILES["cpu_tiny"], quality=-50.0)
    base = market(who(1.0), who(count=3), who(count=3, standing=Standing(1.0, 1.0, coalition)))
    groups = [replace(group, profiles=[name]) for group, name in zip(base.providers, ("good", "good", "bad"), strict=True)]
    scenario = replace(base, providers=groups)
    terms = replace(TERMS, duel_rate=1.0, duel_ttl_s=100.0, initial_credit=1000.0)
    batch = Batch(scenario, terms, {"good": good, "bad": bad}, seed=5, autoreset=False)
    votes: list[tuple[int, int, int]] = []
    actions = np.array([[GIVE, *[TAKE] * 6]])
    for _ in range(scenario.steps):
        batch.step(actions * np.take_along_axis(batch.masks.reshape(1, -1, 3, 5), actions[..., None], 3)[..., 0])
        for duel in batch.save()["duel"]:
            for judge, vote in zip(duel["judge"][: duel["judges"]].tolist(), duel["vote"].tolist(), strict=False):
                if duel["origin"] >= 0 and vote in (FOR_A, FOR_B):
                    chosen, other = (duel["executor_a"], duel["executor_b"])[:: 1 if vote == FOR_A else -1]
                    votes.append((judge, int(chosen), int(other)))
    return votes, int(batch.counters()["duels_won"][0, 4:].sum())


def test_a_judge_votes_for_its_fellow_and_honestly_where_none_or_both_are() -> None:
    votes, won = ring_votes("ring")
    ring, mixed = {4, 5, 6}, [v for v in votes if (v[1] in {4, 5, 6}) != (v[2] in {4, 5, 6})]
    by_fellows, by_others = [v for v in mixed if v[0] in ring], [v for v in mixed if v[0] not in ring]
    assert by_fellows and by_others
    assert all(chosen in ring for _, chosen, _ in by_fellows) and all(chosen not in ring for _, chosen, _ in by_others)
    assert won > ring_votes(None)[1]


def test_who_is_in_no_coalition_always_votes_honestly() -> None:
    votes, _ = ring_votes(None)
    assert votes and all(other in {4, 5, 6} for _, chosen, other in votes if chosen not in {4, 5, 6} and other in {4, 5, 6})
    assert not [v for v in votes if v[1] in {4, 5, 6} and v[2] not in {4, 5, 6}]


@pytest.mark.parametrize("name", ["free-riders", "lemons", "colluding-judges", "sybils"])
def test_a_market_of_rogues_keeps_its_books(name: str) -> None:
    batch, players = make(name, networks=1, seed=2), Players(1)
    first = sum(batch.save()["account"][part].sum() for part in MONEY)
    for _ in range(60):
        batch.step(players.act(batch.masks))
    assert sum(batch.save()["account"][part].sum() for part in MONEY) == first


def test_two_coalitions_are_told_apart() -> None:
    groups = [who(standing=Standing(1.0, 1.0, name)) for name in ("left", "right", "left")]
    place = Batch(market(*groups, who()), TERMS, PROFILES).world.place
    assert [int(row["coalition"] if hasattr(row, "dtype") else row.coalition) for row in place] == [1, 2, 1, 0]


def test_nothing_may_start_without_an_engine() -> None:
    node = table(provider.NODE, {"usage_target": 2.0})
    engine = table(serving.ENGINE, {"waiting": 0})
    for places, wanted in ((0, False), (1, True)):
        profile = table(serving.PROFILE, {"max_num_seqs": places, "kv_blocks": 10})
        assert bool(provider.may_start(node[0], engine[0], profile[0], 1, 1)) is wanted


def test_play_ends_though_somebody_only_asks() -> None:
    batch = play(market(who(0.5, standing=ASKS_ONLY), who(count=4)), GIVE, *[TAKE] * 4, duel_rate=0.5, duel_ttl_s=60.0)
    all_is_over(batch)
