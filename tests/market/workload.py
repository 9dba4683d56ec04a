"""What the serving tests share: engines to serve, requests to serve, and the drivers that serve them.

Run as a program it serves a fixed set of workloads and writes the bytes of every record to standard output.
"""

import sys
from typing import Any, NamedTuple

import numpy as np

from market import serving
from market.rule import COMPILED, fill, records, rule, to_array


class Workload(NamedTuple):
    """A profile and the requests that one engine gets, by time of arrival."""

    profile: dict[str, float]
    arrivals_s: list[float]
    prompts: list[int]
    outputs: list[int]
    forecasts: list[int]


def draw(profile: dict[str, float], seed: int, count: int, gap_s: float, longest: int) -> Workload:
    """Draw `count` requests that fit in the engine; mean gap `gap_s` (s), prompts and outputs of up to `longest` tokens."""
    rng = np.random.default_rng(seed)
    room = 16 * int(profile["kv_blocks"])
    prompts = rng.integers(1, min(longest, room - 1) + 1, count)
    outputs = np.minimum(rng.integers(1, longest + 1, count), room - prompts)
    forecasts = rng.integers(0, 2 * longest, count)
    arrivals = rng.exponential(gap_s, count).cumsum()
    return Workload(profile, arrivals.tolist(), prompts.tolist(), outputs.tolist(), forecasts.tolist())


class World(NamedTuple):
    """One engine, its profile (records of length 1) and the records of its requests."""

    engine: Any
    profile: Any
    requests: Any


def build(load: Workload) -> World:
    """Make an empty engine and the records of a workload."""
    profile, engine, requests = (
        records(kind, count)
        for kind, count in ((serving.PROFILE, 1), (serving.ENGINE, 1), (serving.REQUEST, max(len(load.prompts), 1)))
    )
    fill(profile, np.array([tuple(load.profile[name] for name in serving.PROFILE.names or ())], serving.PROFILE))
    rows = np.zeros(len(requests), serving.REQUEST)
    rows["prompt_tokens"][: len(load.prompts)] = load.prompts
    rows["output_tokens"][: len(load.prompts)] = load.outputs
    rows["forecast_tokens"][: len(load.prompts)] = load.forecasts
    fill(requests, rows)
    serving.open_engine(engine[0], 0.0)
    return World(engine, profile, requests)


def column(values: list[float]) -> Any:
    """Give numbers the form that rules take: an array when compiled, a list when plain."""
    return np.array(values) if COMPILED else values


@rule
def serve(engine, profile, requests, arrivals_s, looks_s, most_blocks):
    """Serve all requests with `advance` alone, looking in at `looks_s` too (sorted); most_blocks[0]: most KV blocks ever seen."""
    look = 0
    for i in range(len(arrivals_s)):
        while look < len(looks_s) and looks_s[look] < arrivals_s[i]:
            serving.advance(engine[0], profile[0], requests, looks_s[look])
            most_blocks[0] = max(most_blocks[0], engine[0].blocks_used)
            look += 1
        serving.advance(engine[0], profile[0], requests, arrivals_s[i])
        serving.enqueue(engine[0], requests, i, arrivals_s[i])
        most_blocks[0] = max(most_blocks[0], engine[0].blocks_used)
    while look < len(looks_s):
        serving.advance(engine[0], profile[0], requests, looks_s[look])
        most_blocks[0] = max(most_blocks[0], engine[0].blocks_used)
        look += 1
    serving.advance(engine[0], profile[0], requests, serving.NEVER)


@rule
def serve_by_events(engine, profile, requests, arrivals_s, collected):
    """Serve all requests from event to event: advance, collect, enqueue, begin; returns how many were collected, or -1.

    collected   gets the indices of the requests in the order of collection; -1: collected before its time or the clock ran back
    """
    count = 0
    arrived = 0
    now = 0.0
    event = serving.NEVER
    while True:
        arrival = arrivals_s[arrived] if arrived < len(arrivals_s) else serving.NEVER
        before = now
        now = min(arrival, event)
        if now == serving.NEVER:
            return count
        if now < before or count > len(collected):
            return -1
        serving.advance(engine[0], profile[0], requests, now)
        index = serving.collect(engine[0], requests, now)
        while index != serving.NONE:
            if requests[index].finish_s > now:
                return -1
            collected[count] = index
            count += 1
            index = serving.collect(engine[0], requests, now)
        while arrived < len(arrivals_s) and arrivals_s[arrived] == now:
            serving.enqueue(engine[0], requests, arrived, now)
            arrived += 1
        event = serving.begin(engine[0], profile[0], requests, now)


COEFFICIENTS = {
    "a_s": 0.0118,
    "a2_s": 0.0068,
    "b_s": 5.67e-5,
    "c_s": 2.18e-5,
    "d_s": 9.56e-8,
    "e_s": 0.002,
    "q_s": 1e-9,
    "h_s": 0.006,
}


def sizes(kv_blocks: int, max_num_seqs: int, max_num_batched_tokens: int) -> dict[str, float]:
    """Make a profile: an A100's coefficients with an engine of other sizes."""
    engine = {"kv_blocks": kv_blocks, "max_num_seqs": max_num_seqs, "max_num_batched_tokens": max_num_batched_tokens}
    return {**COEFFICIENTS, **engine, "quality": 0.0}


def main() -> None:
    """Serve four workloads and write their records."""
    for seed, engine in enumerate((sizes(3000, 64, 2048), sizes(40, 12, 64), sizes(120, 4, 256), sizes(60, 30, 512))):
        load = draw(engine, seed, 120, 0.15, 400)
        world = build(load)
        looks = np.sort(np.random.default_rng(seed).uniform(0.0, load.arrivals_s[-1], 200)).tolist()
        serve(*world, column(load.arrivals_s), column(looks), column([0]))
        sys.stdout.buffer.write(to_array(world.engine, serving.ENGINE).tobytes())
        sys.stdout.buffer.write(to_array(world.requests, serving.REQUEST).tobytes())


if __name__ == "__main__":
    main()
