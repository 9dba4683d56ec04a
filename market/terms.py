"""The terms of a market: prices, rates, limits and times. Names, units and ranges stand here; values in conf/market/."""

import math
from dataclasses import dataclass, fields
from typing import Annotated, Any, NamedTuple, get_args

from market.rule import layout, records

MICRO = 1_000_000
"""Micro-credits in a credit: money is int64, so that totals are kept exactly."""


class Range(NamedTuple):
    """The values that a setting may take, both ends included, and its unit."""

    low: float
    high: float
    unit: str


Share = Annotated[float, Range(0.0, 1.0, "share")]
Seconds = Annotated[float, Range(0.0, 1e9, "s")]
Positive = Annotated[float, Range(1e-6, 1e9, "s")]
Credits = Annotated[float, Range(0.0, 1e9, "credits")]
PerMille = Annotated[int, Range(0, 1000, "thousandths")]
Switch = Annotated[int, Range(0, 1, "1 = yes")]


@dataclass(frozen=True)
class Terms:
    """What all providers of a network have agreed on."""

    initial_credit: Credits  # free credit of a provider that joins
    initial_stake: Credits  # stake of a provider that joins
    price_per_request: Credits  # fixed part of the price of delegated work
    price_per_ktoken: Credits  # part per 1,000 forecast tokens (prompt and answer)
    judge_fee: Credits  # paid to a judge for a vote
    candidates: Annotated[int, Range(1, 6, "peers")]  # peers drawn for an offer, asked in turn
    offer_timeout_s: Positive  # an offer without an answer counts as declined
    reoffer_s: Positive  # waiting work is looked at again after this time
    gossip_s: Positive  # time between two gossip rounds of a provider
    suspect_rounds: Annotated[float, Range(0.5, 100.0, "rounds x log2(providers)")]  # silence that makes a peer suspect
    gone_rounds: Annotated[float, Range(0.5, 100.0, "rounds x log2(providers)")]  # suspicion that makes it gone
    duel_rate: Share  # share of delegated requests that are duelled
    duel_ttl_s: Positive  # a duel is settled with the votes in hand after this time
    judges: Annotated[int, Range(1, 3, "judges")]  # judges drawn for a duel
    judge_tokens: Annotated[int, Range(1, 100_000, "tokens")]  # answer length of a judge
    judge_scale: Annotated[float, Range(1e-6, 1e6, "quality")]  # quality difference that moves a vote's odds by e
    slash_per_mille: PerMille  # of the loser's stake, to the winner
    bond: Credits  # who has less at stake is drawn for nothing; a lost duel costs so much at least; 0 = any stake will do
    minority_per_mille: PerMille  # of a minority judge's stake, to the majority
    absent_per_mille: PerMille  # of the stake of a judge who did not vote, to the majority
    unbond_s: Seconds  # released stake is free after this time; until then it draws nothing and can be slashed
    stake_rate: Credits  # credits per second that a provider may commit or release
    engine_backlog: Annotated[int, Range(1, 1024, "requests")]  # requests waiting inside an engine before a provider holds back
    paper_usage_target: Share  # paper rules: run at home below this KV use
    paper_offload: Share  # paper rules: probability to offer when above it
    paper_accept: Share  # paper rules: probability to accept when below it
    paper_queue: Share  # paper rules: probability to queue at home when not offered
    central_usage_target: Share  # the paper's centralised scheduler: stay at home below this KV use
    dispatch_s: Seconds  # a provider decides about one own request in this time; 0 = at once
    escrow: Switch  # the price is set aside on acceptance; else it is paid with the answer, if the payer still can
    duellists_judge: Switch  # who answered may be drawn to judge
    judges_least: Annotated[int, Range(1, 3, "judges")]  # a duel for which fewer are found has no verdict


_MONEY = {"initial_credit", "initial_stake", "price_per_request", "price_per_ktoken", "judge_fee", "stake_rate", "bond"}


def _field_kinds() -> dict[str, type]:
    kinds: dict[str, type] = {}
    for field in fields(Terms):
        if field.name in _MONEY:
            kinds[f"{field.name}_micro"] = int
        else:
            kinds[field.name] = get_args(field.type)[0]
    return kinds


TERMS = layout(**_field_kinds(), suspect_s=float, gone_s=float)


def to_record(terms: Terms, providers: int) -> Any:
    """Turn terms into the record that rules take (one row): money in micro-credits, silence limits in seconds.

    source   limits of silence grow with log2 of the population, as in SWIM (Das, Gupta and Motivala, DSN 2002)
    """
    table = records(TERMS, 1)
    record = table[0]
    values: dict[str, float] = {}
    for field in fields(terms):
        value = getattr(terms, field.name)
        if field.name in _MONEY:
            values[f"{field.name}_micro"] = round(value * MICRO)
        else:
            values[field.name] = value
    spread_s = terms.gossip_s * math.log2(providers + 1)
    values["suspect_s"] = terms.suspect_rounds * spread_s
    values["gone_s"] = terms.gone_rounds * spread_s
    for name, value in values.items():
        put(record, name, value)
    return table


def put(record: Any, name: str, value: Any) -> None:
    """Set one field of a record from outside the rules, whichever way they run."""
    if hasattr(record, "dtype"):
        record[name] = value
    else:
        setattr(record, name, value)
