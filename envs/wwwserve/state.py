"""The simulated world as arrays of records: what there is, not what happens.

Every table is flat: provider p of network n stands at n * providers + p, its roster row about q at (n * providers + p) *
providers + q, request slot r of network n at n * requests + r. An index into `request` is always absolute.
"""

from typing import Any

import numpy as np

from market.duel import DUEL
from market.gossip import ROW
from market.ledger import ACCOUNT
from market.provider import NODE
from market.rule import COMPILED, SHORT, TINY, layout, records
from market.serving import ENGINE, PROFILE, REQUEST
from market.tables import World

NONE = -1
NEVER = float("inf")
SEGMENTS = 24
"""Most pieces of constant rate in a provider's demand."""
BANNED = 12
PURPOSES = 8
GAP, LENGTH, BURST, MARKET, GOSSIP, CHURN, SETUP, EPISODE = range(PURPOSES)
"""What a draw is for: each provider has one stream of chance for each, so that demand does not depend on decisions."""

FREE, QUEUED, OFFERED, REMOTE, RUNNING, RETURNING, LOST = range(7)
"""State of a request slot: unused; in a provider's queue; on offer; on its way to its executor; in an engine; answer under way;
executor crashed."""
USER, COPY, JUDGE = range(3)
"""Kind of a request: a user's, the second copy of a duelled one, a judge's."""

MARKET_DISPATCH, PAPER_CENTRAL, CENTRAL = range(3)
"""Who dispatches: the providers themselves, the paper's central scheduler, a request-aware central scheduler."""


def _extended(dtype: np.dtype, **more: Any) -> np.dtype:
    """A record layout that begins with the fields of another."""
    fields: dict[str, Any] = {}
    for name, (kind, *_) in (dtype.fields or {}).items():
        scalar = {"int64": int, "int32": SHORT, "int8": TINY, "float64": float}[kind.base.name]
        fields[name] = (scalar, kind.shape[0]) if kind.shape else scalar
    return layout(**fields, **more)


SETTING = layout(
    networks=int,
    providers=int,
    requests=int,  # request slots of a network
    events=int,  # message slots of a network
    duels=int,  # duel slots of a network
    log=int,  # outcome rows of a network; 0 = not recorded
    regions=int,
    length_rows=int,  # rows of each quantile table
    steps=int,  # control steps of an episode
    ticks=int,  # ticks of upkeep in a control step
    tick_s=float,
    horizon_s=float,
    arrivals_until_s=float,
    length_error=float,  # sigma of the length predictor's log error; < 0: the forecast is max_tokens
    coefficient_error=float,  # engine coefficients vary by +- this share an episode
    value=float,
    penalty=float,
    exchange=float,
    energy=float,
    social=float,
    dispatch=int,
    autoreset=int,
)

PLACE = layout(  # what may stand at a provider's place; one is drawn an episode
    profile_first=int,
    profile_count=int,
    region_first=int,
    region_count=int,
    class_first=int,
    class_count=int,
    segments=int,
    until_s=(float, SEGMENTS),
    low=(float, SEGMENTS),
    high=(float, SEGMENTS),
    of_capacity=int,  # 1: rates are shares of own capacity, 0: requests per s
    shift_s=float,  # the schedule is rotated by a random time up to this
    gap_shape=float,  # Gamma shape of gaps between arrivals; 1 = Poisson
    burst_factor=float,  # rate while bursting over rate while calm; 1 = no bursts
    burst_s=float,  # mean length of a burst
    calm_s=float,  # mean time between bursts
    trace_first=int,
    trace_count=int,  # > 0: arrivals come from the trace
    join_s=float,
    leave_s=float,
    up_s=float,  # mean time online before a crash; NEVER = no churn
    down_s=float,  # mean time offline
    credit_micro=int,  # at the start
    stake_micro=int,
    engine=float,  # share of the profile's engine; 0 = none
    coalition=int,  # 0 = none
)

KIND = layout(table=int, slo_s=float, max_tokens=int)

QUANTILE = layout(p=float, prompt_tokens=float, output_tokens=float)

TRACE = layout(arrival_s=float, prompt_tokens=int, output_tokens=int)

DRIVER = layout(
    arrival_next_s=float,
    engine_next_s=float,
    gossip_next_s=float,
    churn_next_s=float,
    review_next_s=float,
    dispatch_next_s=float,  # when it may decide about an own request again, where the terms say that this takes time
    decision_s=float,  # when the last decision was taken
    region=int,
    kind=int,  # index into the kinds of demand
    pinned=int,  # 1: follows the paper's rules, whatever action is given
    due_head=int,  # own unanswered requests by deadline, as far as it is to come
    due_tail=int,
    due_s=float,  # deadline of the first of them, NEVER when there is none
    attained=int,  # since the last step
    missed=int,
    tokens_mark=int,
    wealth_mark=int,
    lost_head=int,  # own requests whose executor crashed, by index, as long as this is not known here
    draws=(int, PURPOSES),
    segments=int,
    bursting=int,
    toggle_s=float,
    trace_place=int,
    until_s=(float, SEGMENTS + 1),
    rate=(float, SEGMENTS + 1),  # requests per s
)

NET = layout(
    key=int,
    base_key=int,
    episode=int,
    step=int,
    end_step=int,
    free_head=int,
    free=int,
    events=int,
    order=int,
    duels=int,
    logged=int,
    room=int,  # KV tokens of the smallest engine: every request fits in it, so that any provider can execute it
    arrived=int,  # user requests
    answered=int,
    failed=int,
)

JOB = _extended(
    REQUEST,
    arrival_s=float,
    deadline_s=float,
    offered_s=float,
    held_micro=int,  # escrowed for it, or promised where there is no escrow
    origin=SHORT,
    executor=SHORT,
    incarnation=SHORT,  # of the executor when it took the work
    duel=SHORT,
    generation=SHORT,  # of the duel
    due_previous=SHORT,
    due_next=SHORT,
    log_row=SHORT,
    state=TINY,
    kind=TINY,
    seat=TINY,  # of the judge
    waited=TINY,  # has stood in its origin's queue before
    placed=TINY,  # decided to run where it stands
    answered=TINY,
    missed=TINY,  # already counted as a miss
    asked=TINY,  # candidates asked in this offer
    banned_count=TINY,
    banned=(SHORT, BANNED),
)

EVENT = layout(time_s=float, order=SHORT, kind=SHORT, request=SHORT, peer=SHORT)

OUTCOME = layout(
    network=int,
    origin=int,
    executor=int,
    arrival_s=float,
    prompt_tokens=int,
    output_tokens=int,
    forecast_tokens=int,  # what providers believed output_tokens to be
    latency_s=float,
    ttft_s=float,
    slo_s=float,
    status=int,  # 0 unfinished, 1 finished, 2 failed
    delegated=int,
)


STATIC = (
    "setting",  # (1,) SETTING
    "terms",  # (1,) market.terms.TERMS
    "place",  # (providers,) PLACE
    "choice",  # (choices,) int64: profiles, regions and kinds that places may draw
    "profiles",  # (profiles,) PROFILE
    "kind",  # (kinds,) KIND
    "trace",  # (trace rows,) TRACE
    "length",  # (kinds * rows,) QUANTILE: length tables
    "delay",  # (regions * regions,) float64 s, one way
)
"""The tables that an episode does not change. `wake`, (networks * providers,) float64 s: when each provider has something to do."""

STATE = {
    "net": NET,
    "node": NODE,
    "driver": DRIVER,
    "profile": PROFILE,
    "engine": ENGINE,
    "account": ACCOUNT,
    "row": ROW,
    "request": JOB,
    "event": EVENT,
    "duel": DUEL,
    "log": OUTCOME,
}
"""The tables that change, by name: what a saved state holds, beside `wake`. Rows as the head of this file says."""


def column(count: int) -> Any:
    """A column of floats, in the form that the rules read fastest."""
    return np.zeros(count) if COMPILED else [0.0] * count


def allocate(static: dict[str, Any], *, networks: int, providers: int, requests: int, events: int, duels: int, log: int) -> World:
    """Make an empty world around its static tables."""
    everyone = networks * providers
    sizes = {
        "net": networks,
        "node": everyone,
        "driver": everyone,
        "profile": everyone,
        "engine": everyone,
        "account": everyone,
        "row": everyone * providers,
        "request": networks * requests,
        "event": networks * events,
        "duel": networks * duels,
        "log": max(networks * log, 1),
    }
    tables = {name: records(STATE[name], size) for name, size in sizes.items()}
    return World(**static, **tables, wake=column(everyone))
