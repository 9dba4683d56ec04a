"""Slots, messages and lists of a network do what a plain Python list does, through any course of operations."""

import random
from collections.abc import Iterator
from typing import Any

import pytest

from envs.wwwserve import pool
from envs.wwwserve.state import FREE, NEVER, NONE, QUEUED
from tests.envs.stage import PROFILES, Tables, market, who
from tests.envs.wwwserve.play import Batch
from tests.market.rows import TERMS

SEEDS = range(8)
MOVES = 300
N = 1
"""The second of two networks: nothing that is done to it may touch the first."""


@pytest.fixture
def world() -> Any:
    """Two empty networks of two providers."""
    scenario = market(who(), who(), requests_max=24, duels_max=2)
    return Batch(scenario, TERMS, PROFILES, networks=2, seed=1, autoreset=False).world


def walk(world: Any, link: str, head: int) -> Iterator[int]:
    """The slots of a linked list, in order."""
    while head != NONE:
        yield int(head)
        head = getattr(Tables(world).request[head], link)


def own_slots(world: Any) -> range:
    """Places of the second network's slots."""
    count = Tables(world).setting[0].requests
    return range(N * count, (N + 1) * count)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_slot_is_in_one_hand_at_a_time_and_some_are_kept_back(world: Any, seed: int) -> None:
    luck, held = random.Random(seed), set[int]()
    for _ in range(MOVES):
        keep = luck.choice((0, 0, 1, 5))
        if held and luck.random() < 0.45:
            r = held.pop()
            pool.free_slot(world, N, r)
            assert Tables(world).request[r].state == FREE
        else:
            r = pool.take_slot(world, N, keep)
            assert (r == NONE) == (len(own_slots(world)) - len(held) <= keep)
            if r != NONE:
                assert r in own_slots(world) and r not in held
                held.add(r)
        assert Tables(world).net[N].free == len(own_slots(world)) - len(held)
    assert Tables(world).net[0].free == len(own_slots(world))


def test_a_slot_comes_without_what_its_last_user_left_in_it(world: Any) -> None:
    r = pool.take_slot(world, N, 0)
    request = Tables(world).request[r]
    request.held_micro, request.waited, request.duel, request.next, request.offered_s = 7, 1, 1, 3, 5.0
    pool.free_slot(world, N, r)
    assert pool.take_slot(world, N, 0) == r, "the slot that was freed last is taken first"
    assert (request.held_micro, request.waited, request.duel, request.next) == (0, 0, NONE, NONE)
    assert request.offered_s < -1e9


def test_a_duel_learns_that_its_request_is_gone_and_a_later_duel_of_its_slot_does_not(world: Any) -> None:
    k = N * Tables(world).setting[0].duels
    r = pool.take_slot(world, N, 0)
    for mine, theirs, left in ((4, 4, NONE), (4, 5, r)):
        Tables(world).duel[k].request, Tables(world).duel[k].generation = r, theirs
        Tables(world).request[r].duel, Tables(world).request[r].generation = k, mine
        pool.free_slot(world, N, r)
        assert Tables(world).duel[k].request == left
        assert pool.take_slot(world, N, 0) == r


@pytest.mark.parametrize("seed", SEEDS)
def test_messages_come_in_the_order_of_time_and_equal_times_in_the_order_of_sending(world: Any, seed: int) -> None:
    luck, model, sent = random.Random(seed), [], 0
    base = N * Tables(world).setting[0].events
    for _ in range(MOVES):
        if model and (luck.random() < 0.48 or len(model) == Tables(world).setting[0].events):
            wanted = min(model)
            first = Tables(world).event[base]
            assert (first.time_s, first.order, first.request) == wanted
            pool.drop_first(world, N)
            model.remove(wanted)
        else:
            time_s = float(luck.randrange(12))
            pool.send(world, N, time_s, 1, sent % 1000, 0)
            model.append((time_s, sent, sent % 1000))
            sent += 1
        assert Tables(world).net[N].events == len(model) and Tables(world).net[0].events == 0


@pytest.mark.parametrize("seed", SEEDS)
def test_deadlines_stand_in_their_order_and_the_first_is_noted(world: Any, seed: int) -> None:
    luck, model, deadline_s = random.Random(seed), [], 0.0
    g = N * 2 + 1
    spare = list(own_slots(world))
    driver = Tables(world).driver[g]
    for _ in range(MOVES):
        if model and (luck.random() < 0.5 or not spare):
            r = luck.choice(model)
            model.remove(r)
            spare.append(r)
            pool.drop_due(world, g, r)
        else:
            r = spare.pop(luck.randrange(len(spare)))
            deadline_s += luck.choice((0.0, 1.0, 2.5))  # a provider's objective is one, so the last to come is the last due
            Tables(world).request[r].deadline_s = deadline_s
            model.append(r)
            pool.add_due(world, g, r)
        assert list(walk(world, "due_next", driver.due_head)) == model
        assert list(walk(world, "due_previous", driver.due_tail)) == model[::-1]
        assert driver.due_s == (Tables(world).request[model[0]].deadline_s if model else NEVER)
    assert Tables(world).driver[g - 1].due_head == NONE


@pytest.mark.parametrize("seed", SEEDS)
def test_a_queue_keeps_its_order_and_counts_what_waits_in_it(world: Any, seed: int) -> None:
    luck, model = random.Random(seed), []
    g = N * 2
    spare = list(own_slots(world))
    node = Tables(world).node[g]
    for r in spare:
        Tables(world).request[r].prompt_tokens, Tables(world).request[r].forecast_tokens = (
            luck.randrange(1, 99),
            luck.randrange(1, 99),
        )
    for _ in range(MOVES):
        move = luck.random()
        if model and (move < 0.5 or not spare):
            at = luck.randrange(len(model))
            r = model.pop(at)
            spare.append(r)
            pool.drop_queue(world, g, r, model[at - 1] if at else NONE)
            assert Tables(world).request[r].next == NONE
        else:
            r = spare.pop(luck.randrange(len(spare)))
            front = move < 0.75
            model.insert(0 if front else len(model), r)
            (pool.push_front if front else pool.push_queue)(world, g, r)
            assert (Tables(world).request[r].state, Tables(world).request[r].waited) == (QUEUED, 1)
        assert list(walk(world, "next", node.queue_head)) == model
        assert node.queue_tail == (model[-1] if model else NONE)
        assert node.queued == len(model)
        assert node.queued_prompt == sum(int(Tables(world).request[r].prompt_tokens) for r in model)
        assert node.queued_output == sum(int(Tables(world).request[r].forecast_tokens) for r in model)


@pytest.mark.parametrize("seed", SEEDS)
def test_lost_work_stands_in_the_order_of_its_slots(world: Any, seed: int) -> None:
    luck, model = random.Random(seed), []
    g = N * 2
    spare = list(own_slots(world))
    for _ in range(MOVES):
        if model and (luck.random() < 0.5 or not spare):
            at = luck.randrange(len(model))
            r = model.pop(at)
            spare.append(r)
            pool.drop_lost(world, g, r, model[at - 1] if at else NONE)
        else:
            r = spare.pop(luck.randrange(len(spare)))
            model = sorted([*model, r])
            pool.add_lost(world, g, r)
        assert list(walk(world, "next", Tables(world).driver[g].lost_head)) == model


def test_chance_is_a_stream_for_each_purpose_of_each_provider(world: Any) -> None:
    def draws(n: int, p: int, purpose: int) -> list[float]:
        return [pool.chance(world, n, p, purpose) for _ in range(5)]

    begun = [int(count) for count in Tables(world).driver[N * 2].draws]
    streams = [draws(n, p, purpose) for n in (0, 1) for p in (0, 1) for purpose in (0, 3)]
    assert len({value for stream in streams for value in stream}) == 8 * 5, "no two streams share a draw"
    assert all(0.0 < value < 1.0 for stream in streams for value in stream)
    moved = [now - then for now, then in zip(Tables(world).driver[N * 2].draws, begun, strict=True)]
    assert moved == [5, 0, 0, 5, 0, 0, 0, 0], "asking for one purpose moves no other"


def test_a_provider_wakes_at_the_first_of_the_things_that_it_has_to_do(world: Any) -> None:
    driver = Tables(world).driver[3]
    names = ("arrival_next_s", "engine_next_s", "gossip_next_s", "churn_next_s")
    for first in names:
        for place, name in enumerate(names):
            setattr(driver, name, 1.5 if name == first else 2.0 + place)
        pool.set_wake(world, 3)
        assert world.wake[3] == 1.5
