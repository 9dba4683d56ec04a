"""Roster and own books -> observation vector: the only place where an agent's sight is defined.

The vector's length does not depend on the number of providers. Every entry lies in [-1, 1]. Quantities without an upper
end are squashed by x / (1 + x) around a stated half-way point.
"""

from typing import NamedTuple

from market.ledger import wealth
from market.provider import forecast_here_after, wait_here
from market.rule import rule
from market.serving import BLOCK_TOKENS, decode_s, usage

OBSERVATION_VERSION = 1


class Entry(NamedTuple):
    """One entry of the observation: what it is called, what it means, its unit, range, and how it is normalised."""

    name: str
    meaning: str
    unit: str
    low: float
    high: float
    normalisation: str


def _share(name: str, meaning: str) -> Entry:
    return Entry(name, meaning, "share", 0.0, 1.0, "as it is")


def _half(name: str, meaning: str, unit: str, half: str) -> Entry:
    return Entry(name, meaning, unit, 0.0, 1.0, f"x / ({half} + x)")


OBSERVATION_TABLE = (
    _share("kv_usage", "KV blocks in use here"),
    _share("batch_fill", "requests decoding here over max_num_seqs"),
    _half("queue", "requests waiting here, own queue and engine", "requests", "8"),
    _half("wait", "forecast wait for a first prefill here, over own SLO", "1", "1"),
    _half("completion", "forecast completion here of a typical own request, over own SLO", "1", "1"),
    _half("oldest", "age of the oldest request in own queue, over own SLO", "1", "1"),
    _half("work_ahead", "forecast output tokens to come here over capacity, over own SLO", "1", "1"),
    _half("prefill_rate", "prompt tokens per s that hardware here computes", "tokens/s", "10,000"),
    _half("decode_step", "duration of a decode iteration here with one request", "s", "0.02"),
    _half("kv_capacity", "KV tokens that fit here", "tokens", "200,000"),
    _half("capacity", "output tokens per s of a full batch like own demand", "tokens/s", "1,000"),
    _half("load_fast", "own demand over 30 s, as a share of own capacity", "1", "1"),
    _half("load_slow", "own demand over 300 s, as a share of own capacity", "1", "1"),
    _half("prompt", "mean prompt of own requests", "tokens", "1,000"),
    _half("output", "mean forecast answer of own requests", "tokens", "1,000"),
    _half("slo", "objective of own users", "s", "100"),
    _half("credit", "free credit over the price of a typical own request", "requests", "100"),
    _half("stake_share", "own stake over the mean stake of peers alive", "1", "1"),
    _share("stake_of_wealth", "stake over own wealth"),
    _share("unbonding_of_wealth", "unbonding stake over own wealth"),
    _share("duel_record", "(duels won + 1) / (duels + 2)"),
    _share("offer_success", "own offers that found an executor, recent average"),
    _half("delegated_latency", "latency of own delegated work over its SLO, recent average", "1", "1"),
    _half("income", "income over 300 s, in prices of a typical own request per s", "1/s", "0.1"),
    _half("spend", "spending over 300 s, likewise", "1/s", "0.1"),
    _half("away", "own requests at peers", "requests", "8"),
    _half("guests", "delegated requests here", "requests", "8"),
    _half("peers_alive", "peers believed alive", "peers", "8"),
    _half("peers_wait_mean", "forecast wait of peers by stake, over own SLO", "1", "1"),
    _half("peers_wait_min", "least forecast wait of a peer, over own SLO", "1", "1"),
    _half("peers_wait_max", "greatest forecast wait of a peer, over own SLO", "1", "1"),
    _share("peers_accept", "share of peers, by stake, whose posted intent takes work"),
    _half("news_age", "mean age of what is believed of peers", "s", "10"),
    _half("accept_now", "accept ceiling in force (refuse = 0)", "1", "1"),
    _half("forward_now", "forward ceiling in force (never = 1)", "1", "1"),
    _share("commit_now", "stake target in force, share of wealth"),
    _half("decision_gap", "time since the last decision", "s", "1"),
    _share("online", "1 when this provider is online"),
)
OBSERVATION_SIZE = len(OBSERVATION_TABLE)
OBSERVATION_NAMES = tuple(entry.name for entry in OBSERVATION_TABLE)


@rule
def _half_way(x, half):
    x = max(0.0, x)
    return x / (half + x)


@rule
def _half_ways(out, k, x0, half0, x1, half1, x2, half2, x3, half3):
    """Write four neighbours from entry k on: side by side, so that they are divided at once."""
    y0 = _half_way(x0, half0)
    y1 = _half_way(x1, half1)
    y2 = _half_way(x2, half2)
    y3 = _half_way(x3, half3)
    out[k] = y0
    out[k + 1] = y1
    out[k + 2] = y2
    out[k + 3] = y3


@rule
def _write_load(out, node, engine, profile, oldest_s, slo):
    work = engine.due_tokens + engine.waiting_output + node.queued_output
    out[0] = usage(engine, profile)
    out[1] = engine.running / max(profile.max_num_seqs, 1)
    wait_s = wait_here(node, engine, profile)
    completion_s = forecast_here_after(node, engine, profile, wait_s, node.mean_prompt, node.mean_forecast)
    _half_ways(out, 2, float(engine.waiting + node.queued), 8.0, wait_s, slo, completion_s, slo, oldest_s, slo)
    out[6] = _half_way(work, slo * node.capacity_tps + 1.0)


@rule
def _write_demand(out, node, profile, slo):
    capacity = max(node.capacity_tps, 1.0)
    out[7] = 1.0 / (1.0 + 10_000.0 * profile.b_s)
    held = float(BLOCK_TOKENS * profile.kv_blocks)
    fast = node.rate_fast * node.mean_forecast
    slow = node.rate_slow * node.mean_forecast
    _half_ways(out, 8, decode_s(profile, 1.0, 1.0), 0.02, held, 200_000.0, node.capacity_tps, 1_000.0, fast, capacity)
    _half_ways(out, 12, slow, capacity, node.mean_prompt, 1_000.0, node.mean_forecast, 1_000.0, slo, 100.0)


@rule
def _write_standing(out, node, account, price_micro):
    owned = max(wealth(account), 1)
    unit = max(price_micro, 1) * 1.0
    out[16] = _half_way(account.credit_micro, 100.0 * unit)
    out[17] = _half_way(account.stake_micro, node.peers_stake_micro / max(node.peers_alive, 1) + 1.0)
    out[18] = account.stake_micro / owned
    out[19] = account.unbonding_micro / owned
    out[20] = (node.duels_won + 1.0) / (node.duels_won + node.duels_lost + 2.0)
    out[21] = node.offer_success
    _half_ways(out, 22, node.delegated_ratio, 1.0, node.income_rate, 0.1 * unit, node.spend_rate, 0.1 * unit, float(node.away), 8.0)
    out[26] = _half_way(node.guests, 8.0)


@rule
def _write_market(out, node, slo, gap_s):
    waits = node.peers_wait_mean_s, node.peers_wait_min_s, node.peers_wait_max_s
    _half_ways(out, 27, float(node.peers_alive), 8.0, waits[0], slo, waits[1], slo, waits[2], slo)
    out[31] = node.peers_accept
    out[32] = _half_way(node.news_s, 10.0)
    out[33] = _half_way(node.accept_ceiling, 1.0)
    out[34] = _half_way(node.forward_ceiling, 1.0)
    out[35] = max(node.stake_share, 0.0)
    out[36] = _half_way(gap_s, 1.0)
    out[37] = node.online


@rule
def write_observation(out, node, engine, profile, account, price_micro, oldest_s, gap_s):
    """Write the observation of one provider, in place.

    out           (OBSERVATION_SIZE,) float32
    node, engine, profile, account   its own records
    price_micro   price of a typical own request
    oldest_s      age of the oldest request in its queue, 0 when there is none
    gap_s         time since its last decision
    """
    slo = node.slo_s
    _write_load(out, node, engine, profile, oldest_s, slo)
    _write_demand(out, node, profile, slo)
    _write_standing(out, node, account, price_micro)
    _write_market(out, node, slo, gap_s)
