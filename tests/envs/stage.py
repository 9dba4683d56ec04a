"""A small market for tests: providers with constant actions, played to the end, and what must hold of it at any moment."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from envs.wwwserve import load
from envs.wwwserve.batch import Batch
from envs.wwwserve.scenario import Demand, Group, Online, Scenario, Standing
from envs.wwwserve.state import FREE, LOST, NEVER, NONE, USER
from market.action import LEVELS
from tests.market.rows import TERMS

MICRO = 1_000_000
PROFILES = load.profiles({"cpu_tiny"})
TINY = load.scenario("tiny")
ALWAYS = LEVELS - 1
GIVE, TAKE, TRADE, STAY = (0, ALWAYS, 0), (ALWAYS, 0, 2), (ALWAYS, ALWAYS, 2), (0, 0, 0)
"""Forward all; accept all; both; neither. Who accepts stakes a tenth of its wealth, so that it is drawn."""
State = dict[str, Any]
ORDINARY = Standing(1.0, 1.0, None)


def who(
    rate: float = 0.0,
    count: int = 1,
    join_s: float = 0.0,
    leave_s: float | None = None,
    up_s: float | None = None,
    standing: Standing = ORDINARY,
) -> Group:
    """Providers with `rate` requests/s from users of their own."""
    demand = Demand("requests_per_s", [(60.0, rate, rate)], 0.0, 1.0, None, None)
    return Group(count, ["cpu_tiny"], ["lab"], ["reasoning"], demand, Online(join_s, leave_s, up_s, 5.0), standing)


def market(*groups: Group, horizon_s: float = 200.0, **changes: Any) -> Scenario:
    """A scenario of these providers in one place."""
    whole = {"horizon_s": horizon_s, "arrivals_until_s": 60.0, "control_s": 1.0, "coefficient_error": 0.0}
    return replace(TINY, name="defects", providers=list(groups), **(whole | changes))


def nothing_to_check(_state: State) -> None:
    """Check nothing."""


def play(
    scenario: Scenario, *intents: tuple[int, ...], check: Callable[[State], None] = nothing_to_check, seed: int = 3, **terms: Any
) -> Batch:
    """Play an episode with one constant action a provider (all idle when offline, never what is masked)."""
    batch = Batch(scenario, replace(TERMS, **terms), PROFILES, networks=1, seed=seed, record=True, autoreset=False)
    wanted = np.array([intents], np.int64)
    for _ in range(scenario.steps):
        allowed = np.take_along_axis(batch.masks.reshape(1, -1, 3, LEVELS), wanted[..., None], 3)[..., 0]
        batch.step(wanted * allowed)
        if check is not nothing_to_check:
            check(batch.save())
    return batch


class Tables:
    """A world's tables, whose records are read and written by field in either mode: `tables.request[r].state`."""

    def __init__(self, world: Any) -> None:
        self._world = world

    def __getattr__(self, name: str) -> Any:
        table = getattr(self._world, name)
        return table.view(np.recarray) if isinstance(table, np.ndarray) and table.dtype.names else table


def money_is_in_order(state: State) -> None:
    """Nothing is made or lost or below zero, and what is in escrow is what work under way will cost."""
    accounts, requests = state["account"], state["request"]
    names = ("credit_micro", "stake_micro", "escrow_micro", "unbonding_micro")
    endowment = round(TERMS.initial_credit + TERMS.initial_stake) * MICRO
    assert sum(int(accounts[name].sum()) for name in names) == len(accounts) * endowment
    assert min(int(accounts[name].min()) for name in names) >= 0
    live = requests[requests["state"] != FREE]
    held = np.zeros(len(accounts), np.int64)
    np.add.at(held, live["origin"], live["held_micro"])
    assert held.tolist() == accounts["escrow_micro"].tolist()


def every_request_is_somewhere(state: State) -> None:
    """Each request of a user is answered, failed, or under way in one slot."""
    net, requests = state["net"][0], state["request"]
    open_users = (requests["state"] != FREE) & (requests["kind"] == USER) & (requests["answered"] == 0)
    assert net["arrived"] == net["answered"] + net["failed"] + int(open_users.sum())
    assert net["free"] == int((requests["state"] == FREE).sum())


def walk(requests: Any, link: str, head: int) -> list[int]:
    """The slots of a linked list, in order."""
    found = []
    while head != NONE:
        found.append(int(head))
        head = requests[head][link]
    return found


def lists_are_in_order(state: State) -> None:
    """A provider's deadlines and lost work stand in lists that leave nothing out, and the first deadline is noted."""
    requests = state["request"]
    for p, driver in enumerate(state["driver"]):
        mine = (requests["state"] != FREE) & (requests["origin"] == p)
        due = walk(requests, "due_next", driver["due_head"])
        waiting = mine & (requests["kind"] == USER) & (requests["answered"] == 0) & (requests["missed"] == 0)
        assert sorted(due) == np.flatnonzero(waiting).tolist()
        assert requests["deadline_s"][due].tolist() == sorted(requests["deadline_s"][due])
        assert driver["due_s"] == (requests["deadline_s"][due[0]] if due else NEVER)
        lost = np.flatnonzero(mine & (requests["state"] == LOST)).tolist()
        assert walk(requests, "next", driver["lost_head"]) == lost


def duels_are_fair(state: State) -> None:
    """No executor duels itself, no judge is a duellist or the origin, no judge sits twice."""
    for duel in state["duel"]:
        if duel["origin"] < 0 or duel["judges"] == 0:
            continue
        seats = duel["judge"][: duel["judges"]].tolist()
        people = [duel["executor_a"], duel["executor_b"], duel["origin"], *seats]
        assert len(set(people)) == len(people), people


def all_is_over(batch: Batch) -> State:
    """Nothing is under way any more: no work, no money held, no message, no duel open."""
    state = batch.save()
    net = state["net"][0]
    assert net["arrived"] > 0 and net["arrived"] == net["answered"] + net["failed"]
    assert not (state["request"]["state"] != FREE).any() and (state["driver"]["lost_head"] == NONE).all()
    assert not state["account"]["escrow_micro"].any() and not state["node"]["away"].any() and not state["node"]["guests"].any()
    assert not state["duel"]["open"].any() and net["duels"] == net["events"] == 0
    return state


def everything(state: State) -> None:
    """All that holds at any moment."""
    money_is_in_order(state)
    every_request_is_somewhere(state)
    lists_are_in_order(state)
    duels_are_fair(state)
