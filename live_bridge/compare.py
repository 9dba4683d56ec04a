"""How far the simulator was from what real nodes did: differences, what luck explains of them, and the bounds they are held to.

A live play is one draw of chance in the market, and so is a simulated one. The simulator plays the same demand many times; how
far its own plays lie apart is what luck alone can do, and stands beside every difference.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from agents.metrics import measure
from live_bridge.episode import FINISHED, Course, Episode
from market import profile as profiles
from market import provider
from market.rule import records
from market.terms import put
from settings import read

EASY, HARD = 0.7, 0.9
"""Loads (share of the busiest engine's capacity) at which bounds change."""
NODE_S, EMULATED_S = 0.01, 0.01
"""s on the wall that a node may add to a first token, and for which an emulated engine may hold one back."""
SIGMAS = 2.0
"""Of chance: about 95 of 100 draws lie within."""
WINDOW_SHARE = 0.25
"""Of the time in which requests arrive, over which load is averaged: less than a phase of the scenarios, more than an answer."""
GRID = 401
"""Times at which load is looked at."""
SLOWER_NOTE = (
    "a step 3 % longer moves mean latency by 4 % at load 0.6, 5 % at 0.8, 9 % at 0.9 and 26 % at 1.1, and TTFT by 4, 28, 59, 36 %"
)
Verdict = Literal["within", "luck", "missed", "shown"]
Way = Literal["relative", "points"]


class Bound(NamedTuple):
    """How far live and simulated values may lie apart; None: the difference is shown and not judged."""

    metric: str
    way: Way  # relative: share of the simulated value; points: difference of two shares
    easy: float | None  # at loads up to EASY
    middle: float | None  # up to HARD
    hard: float | None  # above
    reason: str

    def at(self, load: float) -> float | None:
        """The bound at a load."""
        return self.easy if load <= EASY else self.middle if load <= HARD else self.hard


_TIMES = "the goal for a calibrated engine; near saturation small errors of a step grow without limit, so times are shown only"
BOUNDS = (
    Bound(
        "slo_attainment",
        "points",
        0.03,
        0.03,
        0.03,
        "what a user and the reward see; it hardly amplifies errors, so one bound for all loads",
    ),
    Bound("latency_s_mean", "relative", 0.05, 0.10, None, _TIMES),
    Bound("latency_s_p50", "relative", 0.05, 0.10, None, _TIMES),
    Bound("latency_s_p95", "relative", 0.05, 0.10, None, _TIMES),
    Bound("latency_s_p99", "relative", 0.05, 0.10, None, _TIMES),
    Bound("ttft_s_mean", "relative", 0.05, None, None, "as latency, but queueing amplifies it sevenfold already at load 0.8"),
    Bound("makespan_s", "relative", 0.03, 0.03, 0.03, "capacity: does not amplify errors, and says most at overload"),
    Bound("failed_share", "points", 0.01, 0.01, 0.01, "a request that fails live alone is a defect, not a difference"),
    Bound("delegated_share", "points", 0.05, 0.05, 0.05, "both worlds run the same rules on nearly the same sight"),
    Bound("duels", "relative", None, None, None, "that had a winner; shown only, since it depends on what the engines can judge"),
    Bound("actions", "points", 0.10, 0.10, 0.10, "total variation of the levels chosen, at the head where it is greatest"),
    Bound("wealth", "points", 0.10, 0.10, 0.10, "mean over providers of the difference, as a share of what each began with"),
    Bound("money", "points", 0.0, 0.0, 0.0, "credit and stake of all, less what was minted: conserved to the micro-credit"),
)
"""Every bound and its reason; the loads are those of the simulated play."""


class Line(NamedTuple):
    """One metric of one policy in both worlds."""

    metric: str
    way: Way
    simulated: float | None  # mean over replays; None: not one number
    live: float | None  # mean over repetitions
    difference: float  # live - simulated, as `way` says
    luck: float  # what chance in the market does to the difference, in the same unit
    bound: float | None  # the floor of times included
    verdict: Verdict


class Comparison(NamedTuple):
    """One policy in both worlds."""

    policy: str
    load: float  # of the busiest engine, in the simulator
    replays: int
    repetitions: int
    lines: list[Line]

    @property
    def missed(self) -> list[str]:
        """Metrics whose bound is missed by more than luck explains."""
        return [line.metric for line in self.lines if line.verdict == "missed"]

    @property
    def blind(self) -> list[str]:
        """Metrics in which luck is greater than the bound: more repetitions would tell more."""
        return [line.metric for line in self.lines if line.bound is not None and line.luck > line.bound]


def floor_s(speed: float, *, emulated: bool) -> float:
    """Market seconds that any time may differ by, however short it is.

    speed    market seconds per second on the wall
    """
    return speed * (NODE_S + (EMULATED_S if emulated else 0.0))


def compare(policy: str, episode: Episode, live: Sequence[Course], floor_s: float) -> Comparison:
    """Compare the live plays of a policy with its replays in the simulator.

    live     at least one
    floor_s  market seconds that any time may differ by, beside its bound
    errors   ValueError with fewer than two replays: one play does not tell luck from error
    """
    simulated = episode.played[policy]
    if len(simulated) < 2 or not live:
        raise ValueError(f"{policy}: needs 2 or more replays and a live play to compare, got {len(simulated)} and {len(live)}")
    load = float(np.mean([busiest_load(episode, course) for course in simulated]))
    worlds = [[_numbers(course, episode.horizon_s) for course in plays] for plays in (simulated, live)]
    minted = episode.terms["initial_credit"] + episode.terms["initial_stake"]
    lines = []
    for bound in BOUNDS:
        if bound.metric in _SPECIAL:
            lines += _SPECIAL[bound.metric](bound, simulated, live, minted, load)
        else:
            simulations, found = ([row[bound.metric] for row in world] for world in worlds)
            lines.append(_number_line(bound, simulations, found, floor_s, load))
    return Comparison(policy, load, len(simulated), len(live), lines)


def _numbers(course: Course, horizon_s: float) -> dict[str, float]:
    """Measure one play: agents.metrics, makespan, duels."""
    more = {"makespan_s": makespan_s(course.rows, horizon_s), "duels": float(sum(course.counters["duels_won"]))}
    return measure(course.rows, horizon_s=horizon_s) | more


def makespan_s(rows: np.ndarray, horizon_s: float) -> float:
    """When the last answer was there (s); the horizon when one is still missing."""
    ended = np.where(rows["status"] == FINISHED, rows["arrival_s"] + rows["latency_s"], horizon_s)
    return float(np.minimum(ended, horizon_s).max())


def _number_line(bound: Bound, simulated: Sequence[float], live: Sequence[float], floor_s: float, load: float) -> Line:
    middle, found = float(np.mean(simulated)), float(np.mean(live))
    scale = abs(middle) if bound.way == "relative" else 1.0
    luck = SIGMAS * float(np.std(simulated, ddof=1)) * math.sqrt(1.0 / len(simulated) + 1.0 / len(live))
    limit = bound.at(load)
    if limit is not None and bound.way == "relative":
        limit = (limit * scale + floor_s) / scale if scale > 0.0 else math.inf
    difference = (found - middle) / scale if scale > 0.0 else found - middle
    return _line(bound, middle, found, difference, luck / scale if scale > 0.0 else luck, limit)


def _line(bound: Bound, simulated: float | None, live: float | None, difference: float, luck: float, limit: float | None) -> Line:
    size = abs(difference)
    verdict: Verdict = "shown"
    if limit is not None:
        verdict = "within" if size <= limit else "luck" if size <= limit + luck else "missed"
    return Line(bound.metric, bound.way, simulated, live, difference, luck, limit, verdict)


def _action_lines(bound: Bound, simulated: Sequence[Course], live: Sequence[Course], _minted: float, load: float) -> list[Line]:
    """Total variation distance of the levels chosen; no line where rules decide, which choose no levels."""
    plays = [[course.actions for course in world if course.actions is not None] for world in (simulated, live)]
    if not plays[0] or not plays[1]:
        return []
    ours, theirs = (np.array([levels / np.maximum(levels.sum(axis=1, keepdims=True), 1) for levels in world]) for world in plays)
    return [_distance_line(bound, ours, theirs, lambda a, b: float(0.5 * np.abs(a - b).sum(axis=1).max()), load)]


def _wealth_lines(bound: Bound, simulated: Sequence[Course], live: Sequence[Course], minted: float, load: float) -> list[Line]:
    """Mean difference of the providers' wealth, as a share of what each began with."""
    ours, theirs = (np.array([course.wealth for course in world]) for world in (simulated, live))
    return [_distance_line(bound, ours, theirs, lambda a, b: float(np.abs(a - b).mean() / minted), load)]


def _distance_line(
    bound: Bound, simulated: NDArray[np.float64], live: NDArray[np.float64], distance: Callable[[Any, Any], float], load: float
) -> Line:
    """Compare vectors: luck is how far a replay lies from the mean of the others, in 95 of 100 cases."""
    apart = [distance(simulated[i], np.delete(simulated, i, axis=0).mean(axis=0)) for i in range(len(simulated))]
    difference = distance(live.mean(axis=0), simulated.mean(axis=0))
    return _line(bound, None, None, difference, float(np.percentile(apart, 95)) / math.sqrt(len(live)), bound.at(load))


def _money_lines(bound: Bound, _simulated: Sequence[Course], live: Sequence[Course], minted: float, load: float) -> list[Line]:
    """What all own at the end against what was minted: no luck is in it."""
    begun = [minted * len(course.wealth) for course in live]
    owned = [float(course.wealth.sum()) for course in live]
    worst = max((round(end - begin, 6) for end, begin in zip(owned, begun, strict=True)), key=abs)
    return [_line(bound, begun[0], owned[0], worst, 0.0, bound.at(load))]


_SPECIAL: Mapping[str, Callable[[Bound, Sequence[Course], Sequence[Course], float, float], list[Line]]] = {
    "actions": _action_lines,
    "wealth": _wealth_lines,
    "money": _money_lines,
}


def busiest_load(episode: Episode, course: Course) -> float:
    """Load of the busiest engine at its busiest: output tokens per s that it makes over those of a full batch; 1 = saturated.

    method   the greatest mean over a window of WINDOW_SHARE of the time in which requests arrive
    """
    times_s, step_s = np.linspace(0.0, episode.horizon_s, GRID, retstep=True)
    width = max(int(WINDOW_SHARE * episode.arrivals_until_s / step_s), 1)
    worst = 0.0
    for p, capacity_tps in enumerate(capacities_tps(episode)):
        rate_tps = _rate_tps(course.rows[course.rows["executor"] == p], times_s, episode.horizon_s)
        worst = max(worst, float(np.convolve(rate_tps, np.full(width, 1.0 / width), "valid").max()) / capacity_tps)
    return worst


def _rate_tps(rows: np.ndarray, times_s: NDArray[np.float64], horizon_s: float) -> NDArray[np.float64]:
    """Output tokens per s that the requests of one engine got, at each time; one that is not done by the horizon as the others."""
    begun = rows[np.isfinite(rows["ttft_s"])]
    done = np.isfinite(begun["latency_s"])
    first_s = begun["arrival_s"] + begun["ttft_s"]
    last_s = np.where(done, begun["arrival_s"] + begun["latency_s"], horizon_s)
    rates = begun["output_tokens"] / np.maximum(last_s - first_s, 1e-9)
    rates = np.where(done, rates, rates[done].mean() if done.any() else 0.0)
    inside = (times_s[:, None] >= first_s) & (times_s[:, None] < last_s)
    total: NDArray[np.float64] = inside @ rates
    return total


def capacities_tps(episode: Episode) -> list[float]:
    """Output tokens per s of each provider with a full batch of requests like those of the episode."""
    node = records(provider.NODE, 1)[0]
    put(node, "mean_prompt", float(np.mean([ask.prompt_tokens for ask in episode.demand])))
    put(node, "mean_forecast", float(np.mean([ask.output_tokens for ask in episode.demand])))
    out = []
    for place in episode.places:
        provider.size_up(node, profiles.to_record(read(profiles.Profile, place.profile, place.profile_name))[0])
        out.append(float(node.capacity_tps))
    return out
