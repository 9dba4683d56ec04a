"""One provider's reaction: a request or an offer in, a decision out; and what the provider remembers of its own doings.

Called alike by the simulator and by a live node. Time and chance come in as arguments; who executes a decision, and how
long that takes, is the caller's business.
"""

import math

from market.action import INTENT_FIELDS
from market.rule import layout, rule
from market.serving import BLOCK_TOKENS, decode_s, forecast_after_s, forecast_wait_s, usage

LOCAL = 0
"""Place the request at home: it will be executed here."""
OFFER = 1
"""Offer the request to the market."""
HOLD = 2
"""Keep the request in the queue undecided and look at it again."""

PATIENCE_S = 1.0
"""Remaining SLO time is never taken as less than this, so that a late request is still placed by ratio."""
FAST_S = 30.0
SLOW_S = 300.0
MEMORY = 0.1
"""Weight of the newest event in averages that are taken over events."""

NODE = layout(
    **INTENT_FIELDS,
    online=int,
    slo_s=float,  # s, objective of its own users
    queue_head=int,  # own FCFS queue in front of the engine
    queue_tail=int,
    queued=int,
    queued_prompt=int,  # tokens
    queued_output=int,  # tokens, forecast
    arrivals=int,  # own requests since the last tick
    rate_fast=float,  # own requests per s, averaged over FAST_S
    rate_slow=float,  # over SLOW_S
    mean_prompt=float,  # tokens, of own requests
    mean_forecast=float,
    offer_success=float,  # share of own offers that found an executor, averaged over events
    delegated_ratio=float,  # latency of own delegated work over its SLO, averaged over events
    income_rate=float,  # micro-credits per s earned, averaged over SLOW_S
    spend_rate=float,
    income_micro=int,  # earned since the last tick
    spend_micro=int,
    away=int,  # own requests at peers
    guests=int,  # delegated requests here
    capacity_tps=float,  # output tokens per s at a full batch of requests like its own
    news_s=float,  # mean age of what it believes about peers, s
    peers_alive=int,
    peers_stake_micro=int,
    peers_wait_mean_s=float,  # weighted by stake
    peers_wait_min_s=float,
    peers_wait_max_s=float,
    peers_accept=float,  # share of stake whose posted intent takes work
    offers_made=int,
    offers_accepted=int,  # own offers that found an executor
    offers_received=int,
    offers_declined=int,  # received and declined here
    duels_won=int,
    duels_lost=int,
)


@rule
def open_node(node, slo_s):
    """Empty a provider's memory, in place; its own users expect answers within `slo_s`."""
    node.online = 1
    node.slo_s = slo_s
    node.queue_head = -1
    node.queue_tail = -1
    node.queued = 0
    node.queued_prompt = 0
    node.queued_output = 0
    node.arrivals = 0
    node.rate_fast = 0.0
    node.rate_slow = 0.0
    node.mean_prompt = 0.0
    node.mean_forecast = 0.0
    node.offer_success = 0.5
    node.delegated_ratio = 0.5
    node.income_rate = 0.0
    node.spend_rate = 0.0
    node.income_micro = 0
    node.spend_micro = 0
    node.away = 0
    node.guests = 0
    node.capacity_tps = 0.0
    node.news_s = 0.0
    node.peers_alive = 0
    node.peers_stake_micro = 0
    node.peers_wait_mean_s = 0.0
    node.peers_wait_min_s = 0.0
    node.peers_wait_max_s = 0.0
    node.peers_accept = 0.0
    node.offers_made = 0
    node.offers_accepted = 0
    node.offers_received = 0
    node.offers_declined = 0
    node.duels_won = 0
    node.duels_lost = 0


@rule
def take_turn(turn_s, now, dispatch_s, most_s):
    """When the next decision may be taken if one is taken now, or -1 when it is not a provider's turn yet.

    turn_s       when the next decision may be taken (s)
    dispatch_s   time that a decision takes (s), > 0
    most_s       idle time (s) for which decisions may be made up, >= 0: a driver that looks rarely decides about several at once
    """
    return -1.0 if turn_s > now else max(turn_s, now - most_s) + dispatch_s


@rule
def price(terms, prompt, output):
    """Price (micro-credits) of delegated work with `prompt` tokens and a forecast of `output` tokens."""
    return terms.price_per_request_micro + terms.price_per_ktoken_micro * (prompt + output) // 1000


@rule
def forecast_here(node, engine, profile, prompt, output):
    """Forecast (s) from now to the last token of a request placed here behind all that is queued here."""
    return forecast_here_after(node, engine, profile, wait_here(node, engine, profile), prompt, output)


@rule
def forecast_here_after(node, engine, profile, wait_s, prompt, output):
    """`forecast_here` when `wait_here` (s) is known already."""
    return forecast_after_s(
        profile,
        wait_s,
        engine.running,
        engine.kv_tokens,
        engine.waiting + node.queued,
        engine.waiting_prompt + node.queued_prompt,
        engine.waiting_output + node.queued_output,
        prompt,
        output,
    )


@rule
def wait_here(node, engine, profile):
    """Forecast (s) how long a request placed here now would wait for its first prefill."""
    return forecast_wait_s(
        profile,
        engine.running,
        engine.kv_tokens,
        engine.due_tokens,
        engine.waiting + node.queued,
        engine.waiting_prompt + node.queued_prompt,
        engine.waiting_output + node.queued_output,
    )


@rule
def place_refused(node, u):
    """Decide about own work that finds no executor: LOCAL, or HOLD. u: uniform in (0, 1)."""
    return LOCAL if u < node.p_queue else HOLD


@rule
def on_arrival(node, kv_use, forecast, remaining_s, may_offer, u_offload, u_queue):
    """Decide about own work, arriving or waiting: LOCAL, OFFER or HOLD.

    kv_use         share of KV blocks in use here
    forecast       s to its last token, were it placed here
    remaining_s    s to its deadline
    may_offer      whether credit and terms allow an offer
    u_*            uniforms in (0, 1)
    """
    fits = forecast <= node.forward_ceiling * max(remaining_s, PATIENCE_S)
    if fits and kv_use < node.usage_target:
        return LOCAL
    if may_offer and u_offload < node.p_offload:
        return OFFER
    return place_refused(node, u_queue)


@rule
def on_offer(node, kv_use, forecast, remaining_s, u_accept):
    """Decide about a peer's offer by the posted intent: True = accept. Arguments as for `on_arrival`."""
    if node.online == 0 or node.queued > node.accept_queue or kv_use >= node.accept_usage:
        return False
    return forecast <= node.accept_ceiling * max(remaining_s, PATIENCE_S) and u_accept < node.p_accept


@rule
def may_start(node, engine, profile, backlog, placed):
    """Whether the head of the queue may be handed to the engine: it would start almost at once, and there is an engine.

    placed   whether it was decided to run here; undecided work starts only below the usage target
    """
    return engine.waiting < backlog and profile.max_num_seqs > 0 and (placed == 1 or usage(engine, profile) < node.usage_target)


@rule
def note_arrival(node, prompt, output):
    """Remember an own request of `prompt` tokens and a forecast of `output` tokens."""
    node.arrivals += 1
    if node.mean_forecast == 0.0:
        node.mean_prompt = float(prompt)
        node.mean_forecast = float(output)
    node.mean_prompt += MEMORY * (prompt - node.mean_prompt)
    node.mean_forecast += MEMORY * (output - node.mean_forecast)


@rule
def note_offer(node, accepted):
    """Remember whether an offer of own work found an executor (1) or not (0)."""
    node.offers_made += 1
    node.offers_accepted += accepted
    node.offer_success += MEMORY * (accepted - node.offer_success)


@rule
def note_delegated(node, latency_s):
    """Remember the latency (s) of own work that a peer answered."""
    node.delegated_ratio += MEMORY * (latency_s / node.slo_s - node.delegated_ratio)


@rule
def tick(node, span_s):
    """Let `span_s` pass for the averages over time."""
    fast = min(span_s / FAST_S, 1.0)
    slow = min(span_s / SLOW_S, 1.0)
    rate = node.arrivals / span_s if node.arrivals > 0 else 0.0
    income = node.income_micro / span_s if node.income_micro > 0 else 0.0
    spend = node.spend_micro / span_s if node.spend_micro > 0 else 0.0
    node.rate_fast += fast * (rate - node.rate_fast)
    node.rate_slow += slow * (rate - node.rate_slow)
    node.income_rate += slow * (income - node.income_rate)
    node.spend_rate += slow * (spend - node.spend_rate)
    node.arrivals = 0
    node.income_micro = 0
    node.spend_micro = 0


@rule
def post(row, node, engine, profile, now, step):
    """Write a provider's own roster row, as peers will hear of it; `step` is what the version grows by."""
    row.version += step
    row.status = 0
    row.changed_s = now
    row.posted_s = now
    row.wait_s = wait_here(node, engine, profile)
    row.usage = usage(engine, profile)
    row.accepts = 1.0 if node.accept_ceiling > 0.0 and node.p_accept > 0.0 else 0.0
    row.duels_won = node.duels_won
    row.duels_lost = node.duels_lost


@rule
def size_up(node, profile):
    """Work out how many output tokens per s a full batch of requests like its own would give."""
    size = max(node.mean_prompt + node.mean_forecast, 1.0)
    held = float(BLOCK_TOKENS * profile.kv_blocks)
    places = max(min(float(profile.max_num_seqs), held / size), 1.0)
    node.capacity_tps = places / decode_s(profile, places, min(places * (size - 0.5 * node.mean_forecast), held))


@rule
def survey(node, rows, first_row, accounts, first_account, providers, self_index, now):
    """Sum up what the roster says of the market, weighted by stake: waits, willingness, age of the news."""
    alive = 0
    stakes = 0
    weight = 0.0
    waits = 0.0
    accepts = 0.0
    ages = 0.0
    least = math.inf
    most = 0.0
    for peer in range(providers):
        row = rows[first_row + peer]
        if peer == self_index or row.status != 0:
            continue
        alive += 1
        stake = accounts[first_account + peer].stake_micro
        stakes += stake
        share = float(max(stake, 1))
        weight += share
        waits += share * row.wait_s
        accepts += share * row.accepts
        ages += now - row.posted_s
        least = min(least, row.wait_s)
        most = max(most, row.wait_s)
    node.peers_alive = alive
    node.peers_stake_micro = stakes
    node.peers_wait_mean_s = waits / weight if alive > 0 else 0.0
    node.peers_wait_min_s = least if alive > 0 else 0.0
    node.peers_wait_max_s = most
    node.peers_accept = accepts / weight if alive > 0 else 0.0
    node.news_s = ages / alive if alive > 0 else 0.0
