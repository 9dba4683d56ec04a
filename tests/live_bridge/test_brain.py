"""A provider's mind: the same rules as in the simulator, asked about real work; every piece of work ends in one place."""

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from live_bridge.brain import Brain
from live_bridge.brain.engine import EngineView
from live_bridge.brain.work import USER, Work
from market import gossip, provider, serving
from market.chance import key_of
from market.observation import OBSERVATION_NAMES
from market.profile import to_record
from tests.live_bridge.minds import CREDIT, PEERS, PROFILE, SLOW, STAKE, TERMS, mind, names, setup

NEVER, ALWAYS = (3, 0, 2), (3, 4, 2)
"""Policies that never, and always, forward."""


def test_a_request_that_fits_starts_at_once() -> None:
    assert mind().on(["arrive", 1.0, "r", 100, 50]) == [["start", "r"]]


def test_a_request_that_does_not_fit_is_offered_to_a_peer_for_its_price() -> None:
    [command] = mind(policy=ALWAYS).on(["arrive", 1.0, "r", 100, 50])
    assert command[:2] == ["ask", "r"] and command[2] in PEERS and command[3] == 1_000_000


def test_a_provider_that_knows_nobody_keeps_its_work() -> None:
    assert mind(peers=(), policy=ALWAYS).on(["arrive", 1.0, "r", 100, 50]) == [["start", "r"]]


@pytest.mark.parametrize("policy", [NEVER, ALWAYS, (3, 2, 2), None])
def test_whoever_is_alone_decides_the_same_without_a_forecast(
    monkeypatch: pytest.MonkeyPatch, policy: tuple[int, int, int] | None
) -> None:
    forecast, asked = provider.forecast_here, []
    monkeypatch.setattr(provider, "forecast_here", lambda *seen: asked.append(forecast(*seen)) or asked[-1])
    for tokens in (1, 50, 3_000, 200_000):
        alone, sure = mind(peers=(), policy=policy), mind(peers=(), policy=policy)
        sure.belief.ids.append("nobody")  # one more place in the roster: now it forecasts
        sure.node.online = 0  # and offers nothing all the same
        asked.clear()
        arrival = ["arrive", 1.0, "r", tokens, tokens]
        placed = alone.on(arrival)
        assert not asked or alone.node.p_queue < 1.0
        assert sure.on(arrival) == placed and asked


def test_a_provider_without_credit_keeps_its_work() -> None:
    brain = mind(policy=ALWAYS)
    brain.on(["accounts", 1.0, [["me", 999_999, STAKE, 0, 0]]])
    assert brain.on(["arrive", 1.0, "r", 100, 50]) == [["start", "r"]]


def test_refusals_lead_to_every_candidate_once_and_then_home() -> None:
    brain = mind(policy=ALWAYS)
    asked = [brain.on(["arrive", 1.0, "r", 100, 50])[0][2]]
    for _ in range(TERMS.candidates - 1):
        asked.append(brain.on(["answer", 1.0, "r", asked[-1], "no"])[0][2])
    assert sorted(asked) == sorted(PEERS)
    assert brain.on(["answer", 1.0, "r", asked[-1], "no"]) == [["start", "r"]]
    assert brain.node.offer_success < 0.5


def test_an_accepted_offer_is_sent_and_counted_as_away_until_it_ends() -> None:
    brain = mind(policy=ALWAYS)
    peer = brain.on(["arrive", 1.0, "r", 100, 50])[0][2]
    assert brain.on(["answer", 1.0, "r", peer, "yes"]) == [["send", "r", peer]]
    assert brain.node.away == 1
    assert brain.on(["end", 9.0, "r", 1, 8.0]) == []
    assert (brain.node.away, brain.node.spend_micro, brain.works) == (0, 1_000_000, {})


def test_an_executor_that_breaks_before_its_first_byte_is_suspected_and_another_asked() -> None:
    brain = mind(policy=ALWAYS)
    peer = brain.on(["arrive", 1.0, "r", 100, 50])[0][2]
    brain.on(["answer", 1.0, "r", peer, "yes"])
    [command] = brain.on(["answer", 2.0, "r", peer, "broke"])
    assert command[0] == "ask" and command[2] != peer
    assert brain.belief.status(brain.belief.place(peer)) == gossip.SUSPECT
    assert brain.node.away == 0


def test_an_answer_about_work_that_is_over_changes_nothing() -> None:
    brain = mind(policy=ALWAYS)
    peer = brain.on(["arrive", 1.0, "r", 100, 50])[0][2]
    brain.on(["end", 1.5, "r", 0, 0.5])
    assert brain.on(["answer", 2.0, "r", peer, "yes"]) == []
    assert brain.node.away == 0


def test_an_engine_with_all_places_taken_gets_one_more_and_the_rest_wait_in_order() -> None:
    brain = mind(policy=NEVER, profile=SLOW)
    started = [brain.on(["arrive", 1.0, f"r{k}", 10, 10]) for k in range(5)]
    assert [names(commands) for commands in started] == [["start"], ["start"], ["start"], [], []]
    assert brain.on(["end", 2.0, "r0", 1, 1.0]) == [["start", "r3"]]
    assert [work.id for work in brain.line.works] == ["r4"]


def test_an_offer_is_taken_by_forecast_and_begins_when_its_content_is_here() -> None:
    brain = mind()
    assert brain.on(["offered", 1.0, "g", "ann", [100, 50], 200.0, "guest"]) == [["yes", "g"]]
    assert (brain.node.guests, brain.node.queued, brain.node.queued_output) == (1, 1, 50)
    assert brain.on(["begin", 1.1, "g"]) == [["start", "g"]]
    assert brain.node.queued == 0
    brain.on(["end", 9.0, "g", 1, 8.0])
    assert (brain.node.guests, brain.node.income_micro) == (0, 1_000_000)


@pytest.mark.parametrize(("tokens", "left_s", "answer"), [(50, 200.0, "yes"), (50, 1.0, "no"), (8000, 200.0, "no")])
def test_an_offer_that_cannot_be_done_in_time_is_declined(tokens: int, left_s: float, answer: str) -> None:
    assert names(mind().on(["offered", 1.0, "g", "ann", [100, tokens], left_s, "guest"])) == [answer]


def test_a_judge_votes_whatever_its_policy_says_of_guests() -> None:
    brain = mind(policy=(0, 2, 2))
    assert names(brain.on(["offered", 1.0, "g", "ann", [100, 50], 200.0, "guest"])) == ["no"]
    assert names(brain.on(["offered", 1.0, "j", "ann", [100, 16], 200.0, "judge"])) == ["yes"]


def test_accepted_work_that_never_comes_leaves_no_trace() -> None:
    brain = mind()
    before = _sums(brain)
    brain.on(["offered", 1.0, "g", "ann", [100, 50], 200.0, "guest"])
    brain.on(["end", 3.0, "g", 0, 0.0])
    assert _sums(brain) == before


def test_a_provider_whose_engine_is_down_offers_its_work_and_takes_none() -> None:
    brain = mind(policy=NEVER)
    brain.on(["down", 1.0])
    assert names(brain.on(["arrive", 1.0, "r", 100, 50])) == ["ask"]
    assert names(brain.on(["offered", 1.0, "g", "ann", [100, 50], 200.0, "guest"])) == ["no"]


def test_work_waits_for_an_engine_that_comes_back_and_fails_when_it_does_not() -> None:
    brain = mind(policy=NEVER, peers=())
    brain.on(["down", 1.0])
    assert brain.on(["arrive", 1.0, "r", 100, 50]) == []
    assert "fail" not in names(brain.on(["tick", 3.0, 1.0, {}]))
    assert ["fail", "r", "the engine is down and no peer takes work"] in brain.on(["tick", 6.5, 1.0, {}])
    assert brain.on(["up", 7.0]) == [["start", "r"]]


def test_a_waiting_request_that_no_longer_fits_is_offered_by_the_review() -> None:
    brain = mind(policy=NEVER, profile=SLOW)
    for k in range(6):
        brain.on(["arrive", 1.0, f"r{k}", 10, 60])
    brain.on(["decide", 2.0, 3, 3, 2])
    asked = [command for command in brain.on(["tick", 3.0, 1.0, {}]) if command[0] == "ask"]
    assert [command[1] for command in asked] == ["r5", "r4", "r3"]


def test_stake_moves_towards_its_target_no_faster_than_the_terms_allow() -> None:
    brain = mind(policy=(3, 2, 4))
    assert ["stake", 2_000_000] in brain.on(["tick", 1.0, 1.0, {}])
    brain.on(["decide", 1.0, 3, 2, 0])
    assert ["unstake", 2_000_000] in brain.on(["tick", 2.0, 1.0, {}])


def test_stake_at_its_target_gives_no_order() -> None:
    brain = mind(policy=(3, 2, 2))
    brain.on(["accounts", 0.0, [["me", 90_000_000, 10_000_000, 0, 0]]])
    assert not {"stake", "unstake"} & set(names(brain.on(["tick", 1.0, 1.0, {}])))


def test_the_papers_rules_steer_until_a_policy_has_decided_and_again_when_it_fails() -> None:
    brain = mind(policy=None)
    assert (brain.paper, brain.node.usage_target) == (True, TERMS.paper_usage_target)
    brain.on(["decide", 1.0, 3, 2, 2])
    assert (brain.paper, brain.node.stake_share) == (False, 0.10)
    brain.on(["paper", 2.0])
    assert (brain.paper, brain.node.stake_share) == (True, -1.0)


def test_the_papers_rules_offer_above_their_usage_target() -> None:
    brain = mind(policy=None, terms=replace(TERMS, paper_offload=1.0, paper_usage_target=0.0))
    brain.on(["tick", 0.5, 1.0, {}])
    assert names(brain.on(["arrive", 1.0, "r", 100, 50])) == ["ask"]


def test_gossip_posts_a_newer_row_and_names_a_partner() -> None:
    brain = mind()
    before = brain.belief.rows[0].version
    [command] = brain.on(["gossip", 1.0])
    assert command[0] == "gossip" and command[1] in PEERS
    assert brain.belief.rows[0].version == before + 1
    assert brain.node.peers_alive == 3


def test_a_silent_peer_is_suspected_then_lost() -> None:
    brain = mind(peers=("ann",))
    lost: list[list[Any]] = []
    for second in range(1, 60):
        lost += [command for command in brain.on(["gossip", float(second)]) if command[0] == "lost"]
    assert lost == [["lost", "ann"]]
    assert brain.alive() == []


def test_work_at_a_peer_that_is_gone_is_called_back_and_no_other() -> None:
    brain = mind(peers=("ann", "bob"), policy=ALWAYS)
    at: dict[str, str] = {}
    for k in range(12):
        name = f"r{k}"
        at[name] = brain.on(["arrive", 1.0, name, 100, 50])[0][2]
        if k < 10:
            brain.on(["answer", 1.0, name, at[name], "yes"])  # the last two are only on offer
    assert set(at.values()) == {"ann", "bob"}
    told: list[list[Any]] = []
    for second in range(1, 60):
        brain.on(["heard", float(second), [["bob", 2 + second, 0.0, 1.0, 0.1, 1.0, 0, 0]]])
        told += [command for command in brain.on(["gossip", float(second)]) if command[0] in {"lost", "recall"}]
    assert told[0] == ["lost", "ann"]
    assert sorted(told[1:]) == sorted(["recall", f"r{k}"] for k in range(10) if at[f"r{k}"] == "ann")
    away, back = brain.node.away, told[1][1]
    assert brain.on(["answer", 60.0, back, "ann", "broke"])[0][:3] == ["ask", back, "bob"]
    assert brain.node.away == away - 1


def test_only_newer_news_counts() -> None:
    brain = mind(peers=("ann",))
    brain.on(["heard", 1.0, [["ann", 4, 0.0, 99.0, 0.9, 0.0, 0, 0]]])
    assert brain.belief.rows[1].wait_s == 1.0
    brain.on(["heard", 1.0, [["ann", 6, 0.5, 7.0, 0.9, 0.0, 0, 0]]])
    assert (brain.belief.rows[1].wait_s, brain.belief.rows[1].posted_s) == (7.0, 0.5)


def test_news_about_oneself_is_not_believed() -> None:
    brain = mind()
    before = brain.belief.rows[0].version
    brain.on(["heard", 1.0, [["me", 1 << 60, 0.0, 99.0, 0.9, 0.0, 0, 0]]])
    assert brain.belief.rows[0].version == before


def test_a_peer_that_says_it_leaves_is_not_asked() -> None:
    brain = mind(policy=ALWAYS, peers=("ann",))
    brain.on(["leaving", 1.0, "ann"])
    assert names(brain.on(["arrive", 1.0, "r", 100, 50])) == ["start"]


def test_a_provider_that_leaves_takes_no_more_work() -> None:
    brain = mind()
    brain.on(["leaving", 1.0, "me"])
    assert names(brain.on(["offered", 1.0, "g", "ann", [100, 50], 200.0, "guest"])) == ["no"]
    assert names(brain.on(["offered", 1.0, "j", "ann", [100, 50], 200.0, "judge"])) == ["no"]


# -- duels


def _duel() -> tuple[Brain, list[str]]:
    """A duelled request of which both answers are in; the executors' names."""
    brain = mind(policy=ALWAYS, peers=("ann", "ben", "cas", "dan", "eve"), terms=replace(TERMS, duel_rate=1.0))
    first = brain.on(["arrive", 1.0, "r", 100, 50])[0][2]
    sent, copy, ask = brain.on(["answer", 1.0, "r", first, "yes"])
    assert (sent, copy) == (["send", "r", first], ["copy", "r", "r:copy"])
    second = ask[2]
    assert brain.on(["answer", 1.0, "r:copy", second, "yes"]) == [["send", "r:copy", second]]
    return brain, [first, second]


def test_a_duelled_request_goes_to_two_peers_and_is_judged_by_others() -> None:
    brain, executors = _duel()
    assert len(set(executors)) == 2
    assert brain.on(["end", 5.0, "r", 1, 4.0]) == []
    judges = brain.on(["end", 6.0, "r:copy", 1, 5.0])
    assert [command[:2] for command in judges] == [["judge", "r"]] * 3
    assert not {command[2] for command in judges} & {*executors, "me"}


def test_a_duel_is_settled_when_all_have_voted() -> None:
    brain, executors = _duel()
    brain.on(["end", 5.0, "r", 1, 4.0])
    judges = [command[2] for command in brain.on(["end", 6.0, "r:copy", 1, 5.0])]
    assert brain.on(["vote", 7.0, "r", judges[0], "A"]) == []
    assert brain.on(["vote", 7.0, "r", judges[0], "B"]) == []
    brain.on(["vote", 7.0, "r", judges[1], "abstain"])
    votes = [[judges[0], "A"], [judges[1], "abstain"], [judges[2], "B"]]
    assert brain.on(["vote", 8.0, "r", judges[2], "B"]) == [["duel", "r", *executors, votes]]
    assert brain.contests.open == {}


def test_a_duel_ends_by_its_deadline_with_the_votes_in_hand() -> None:
    brain, executors = _duel()
    brain.on(["end", 5.0, "r", 1, 4.0])
    judges = [command[2] for command in brain.on(["end", 6.0, "r:copy", 1, 5.0])]
    brain.on(["vote", 7.0, "r", judges[1], "B"])
    ended = [command for command in brain.on(["tick", 61.0, 1.0, {}]) if command[0] == "duel"]
    assert ended == [["duel", "r", *executors, [[judges[0], "absent"], [judges[1], "B"], [judges[2], "absent"]]]]


def test_a_duel_without_a_vote_is_called_off_at_its_deadline() -> None:
    brain, _ = _duel()
    brain.on(["end", 5.0, "r", 1, 4.0])
    brain.on(["end", 6.0, "r:copy", 1, 5.0])
    assert ["duel_off", "r"] in brain.on(["tick", 61.0, 1.0, {}])


@pytest.mark.parametrize("fails", ["r", "r:copy"])
def test_a_duel_of_which_an_answer_fails_is_called_off(fails: str) -> None:
    brain, _ = _duel()
    assert ["duel_off", "r"] in brain.on(["end", 5.0, fails, 0, 4.0])
    assert brain.contests.open == {}


def test_a_copy_that_nobody_takes_is_dropped_and_the_user_is_served_all_the_same() -> None:
    brain = mind(policy=ALWAYS, peers=("ann",), terms=replace(TERMS, duel_rate=1.0))
    brain.on(["arrive", 1.0, "r", 100, 50])
    commands = brain.on(["answer", 1.0, "r", "ann", "yes"])
    assert commands == [["send", "r", "ann"], ["copy", "r", "r:copy"], ["drop", "r:copy"], ["duel_off", "r"]]
    assert list(brain.works) == ["r"]
    assert brain.contests.open == {}


# -- what is known of the engine


def _work(k: int, prompt: int = 100, forecast: int = 50) -> Work:
    return Work(f"w{k}", USER, prompt, forecast, 0.0, 200.0)


def test_own_work_counts_without_any_reading() -> None:
    view = EngineView(to_record(PROFILE)[0])
    view.start(_work(1))
    view.forget_reading()
    assert (view.record.running, view.record.kv_tokens, view.record.due_tokens) == (1, 100, 50)
    assert serving.usage(view.record, view.profile) > 0.0


def test_a_reading_adds_the_work_of_others() -> None:
    view = EngineView(to_record(PROFILE)[0])
    view.start(_work(1))
    view.reading(3, 2, 0.5)
    assert (view.record.running, view.record.waiting) == (3, 2)
    assert view.record.blocks_used == round(0.5 * PROFILE.kv_blocks)


def test_work_that_ended_between_two_readings_is_not_taken_for_the_work_of_others() -> None:
    view = EngineView(to_record(PROFILE)[0])
    view.reading(0, 0, 0.0)
    works = [_work(k) for k in range(4)]
    for work in works:
        view.start(work)
    for work in works[:3]:
        view.end(work)
    view.reading(4, 0, 0.0)
    assert view.record.running == 1


def test_an_idle_reading_does_not_hide_own_work() -> None:
    view = EngineView(to_record(PROFILE)[0])
    view.start(_work(1))
    view.reading(0, 0, 0.0)
    assert view.record.running == 1


def test_what_has_no_place_in_the_engine_waits_in_it() -> None:
    view = EngineView(to_record(SLOW)[0])
    for k in range(3):
        view.start(_work(k))
    assert (view.record.running, view.record.waiting, view.record.waiting_output) == (2, 1, 50)


def test_progress_is_counted_where_it_is_known_and_estimated_where_not() -> None:
    view = EngineView(to_record(SLOW)[0])
    known, guessed = _work(1), _work(2)
    view.start(known)
    view.start(guessed)
    view.progress(10.0, {"w1": 7})
    assert known.generated == 7
    assert guessed.generated == pytest.approx(10.0, rel=0.2)
    assert view.record.due_tokens == 50 - 7 + 50 - int(guessed.generated)


@given(st.lists(st.tuples(st.integers(1, 5000), st.integers(1, 3000), st.booleans()), min_size=1, max_size=40))
@settings(deadline=None, max_examples=60)
def test_the_view_is_the_sum_of_what_is_in_flight(sizes: list[tuple[int, int, bool]]) -> None:
    view = EngineView(to_record(replace(PROFILE, kv_blocks=2000, max_num_seqs=16))[0])
    for k, (prompt, forecast, stays) in enumerate(sizes):
        work = _work(k, prompt, forecast)
        view.start(work)
        if not stays:
            view.end(work)
    quick = [getattr(view.record, name) for name in ("running", "waiting", "kv_tokens", "blocks_used", "due_tokens")]
    view.refresh()
    assert quick == [getattr(view.record, name) for name in ("running", "waiting", "kv_tokens", "blocks_used", "due_tokens")]
    assert view.record.running + view.record.waiting == sum(stays for *_, stays in sizes)


# -- what a policy sees, and whole lives


def test_a_policy_sees_a_provider_as_the_simulator_would_show_it() -> None:
    observation, mask = mind().observe(3.0)
    assert observation.shape == (1, len(OBSERVATION_NAMES)) and mask.shape == (1, 15)
    assert all(math.isfinite(x) and -1.0 <= x <= 1.0 for x in observation[0])
    assert observation[0, OBSERVATION_NAMES.index("online")] == 1.0
    assert mask.all()


def test_a_provider_without_credit_is_told_that_it_cannot_forward() -> None:
    brain = mind()
    brain.on(["accounts", 1.0, [["me", 0, STAKE, 0, 0]]])
    brain.on(["arrive", 1.0, "r", 100, 50])
    assert brain.observe(1.0)[1][0, 5:10].tolist() == [1, 0, 0, 0, 0]


def _sums(brain: Brain) -> tuple[Any, ...]:
    node, record = brain.node, brain.engine.record
    waiting = (node.queued, node.queued_prompt, node.queued_output, node.away, node.guests)
    return (*waiting, record.running, record.waiting, record.kv_tokens, record.due_tokens, len(brain.works), len(brain.line.works))


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(
            ["arrive", "offered", "begin", "yes", "no", "silent", "broke", "end", "retry", "tick", "gossip", "decide", "down", "up"]
        ),
        st.integers(0, 7),
        st.integers(1, 4000),
    ),
    max_size=120,
)


ANSWERED_IN = {"yes": "offered", "no": "offered", "silent": "offered", "broke": "remote"}
"""State of work in which an answer about it can come."""


def _happens(kind: str, work: Work, now: float, peer: str, size: int) -> tuple[Any, ...]:
    """An event about `work` that its state allows; else nothing."""
    if ANSWERED_IN.get(kind) == work.state:
        return "answer", now, work.id, peer, kind
    if kind == "begin" and work.state == "promised":
        return "begin", now, work.id
    if kind == "retry" and work.kind == USER and work.state in {"running", "remote"}:
        return "retry", now, work.id
    return ("end", now, work.id, size % 2, 1.0) if kind == "end" else ()


def _life(events: list[tuple[str, int, int]], terms: Any = TERMS) -> list[Any]:
    """Make a plausible life of random choices: [event, commands] in order; all that is open is ended at last."""
    brain = mind(terms=terms, profile=replace(PROFILE, max_num_seqs=4), peers=("ann", "ben", "cas", "dan", "eve"))
    lines: list[Any] = []
    asked: dict[str, str] = {}

    def on(*event: Any) -> None:
        commands = brain.on(list(event))
        lines.append(json.loads(json.dumps([event, commands])))
        asked.update({command[1]: command[2] for command in commands if command[0] == "ask"})

    now = 0.0
    for serial, (kind, pick, size) in enumerate(events):
        now += 0.7
        open_works = list(brain.works.values())
        work = open_works[pick % len(open_works)] if open_works else None
        if kind == "arrive":
            on("arrive", now, f"r{serial}", size, size)
        elif kind == "offered":
            on("offered", now, f"g{serial}", PEERS[pick % 3], [size, size], 200.0, "guest")
        elif kind == "tick":
            on("tick", now, 1.0, {})
        elif kind in {"gossip", "down", "up"}:
            on(kind, now)
        elif kind == "decide":
            on("decide", now, pick % 5, size % 5, serial % 5)
        elif work is not None:
            happens = _happens(kind, work, now, asked.get(work.id, ""), size)
            if happens:
                on(*happens)
    on("up", now)
    while brain.works:
        on("end", now, next(iter(brain.works)), 0, 1.0)
    assert _sums(brain) == (0,) * 11
    return lines


@given(EVENTS)
@settings(deadline=None, max_examples=150)
def test_whatever_happens_every_piece_of_work_ends_and_leaves_nothing(events: list[tuple[str, int, int]]) -> None:
    _life(events, replace(TERMS, duel_rate=0.5))


@given(EVENTS)
@settings(deadline=None, max_examples=60)
def test_the_same_events_lead_to_the_same_commands(events: list[tuple[str, int, int]]) -> None:
    assert _life(events, replace(TERMS, duel_rate=0.5, paper_accept=0.5)) == _life(
        events, replace(TERMS, duel_rate=0.5, paper_accept=0.5)
    )


def test_chance_differs_with_the_key() -> None:
    drawn = {mind(policy=ALWAYS, key=key_of(seed, 0)).on(["arrive", 1.0, "r", 9, 9])[0][2] for seed in range(30)}
    assert drawn == set(PEERS)


def test_a_mind_begins_alone_with_the_papers_rules() -> None:
    brain = Brain(setup())
    assert (brain.belief.ids, brain.paper, brain.node.online) == (["me"], True, 1)
    assert brain.on(["arrive", 0.0, "r", 10, 10]) == [["start", "r"]]


def test_the_price_is_the_markets() -> None:
    brain = mind(terms=replace(TERMS, price_per_ktoken=2.0))
    assert brain.price(_work(1, 1500, 500)) == provider.price(brain.belief.terms, 1500, 500) == 5_000_000
    assert CREDIT > 5_000_000
