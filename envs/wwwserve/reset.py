"""The start of an episode: what each provider is this time, who is online, what all believe."""

from envs.wwwserve.pool import chance, set_wake
from envs.wwwserve.rounds import next_churn_s
from envs.wwwserve.serve import close_engine
from envs.wwwserve.state import BURST, EPISODE, FREE, GOSSIP, NEVER, NONE, PURPOSES, SETUP
from envs.wwwserve.workload import next_arrival_s, toggle_burst
from market import gossip, ledger, provider
from market.action import intent_of_action
from market.chance import uniform
from market.rule import rule
from market.serving import BLOCK_TOKENS

STANDSTILL_S = 1e9
"""Duration of an iteration of who has no engine: every forecast says that nothing will ever end there."""


@rule
def _pick(w, n, p, first, count):
    """Draw one of `count` choices."""
    return int(w.choice[first + min(int(chance(w, n, p, SETUP) * count), count - 1)])


@rule
def _vary(w, n, p, share):
    return 1.0 + share * (2.0 * chance(w, n, p, SETUP) - 1.0)


@rule
def _set_profile(w, n, p, g):
    """Give provider p a profile drawn from its choices, its coefficients varied within the setting's error."""
    place = w.place[p]
    source = w.profiles[_pick(w, n, p, place.profile_first, place.profile_count)]
    target = w.profile[g]
    error = w.setting[0].coefficient_error
    speed = _vary(w, n, p, error)
    target.a_s = source.a_s * speed
    target.a2_s = source.a2_s * speed
    target.b_s = source.b_s * speed * _vary(w, n, p, error)
    target.c_s = source.c_s * speed
    target.d_s = source.d_s * speed * _vary(w, n, p, error)
    target.e_s = source.e_s * speed
    target.q_s = source.q_s * speed
    target.h_s = source.h_s
    target.kv_blocks = source.kv_blocks
    target.max_num_seqs = source.max_num_seqs
    target.max_num_batched_tokens = source.max_num_batched_tokens
    target.quality = source.quality
    _cut(target, place.engine)


@rule
def _cut(target, share):
    """Leave a provider a share of its engine, as one of several identities that the engine serves alike.

    It has its share of blocks, requests and tokens of an iteration; what a token or request costs is divided by the share,
    since those of the others are computed beside it. A share of 0 is an engine on which nothing ever runs.
    """
    if share == 0.0:
        target.a_s = STANDSTILL_S
        target.max_num_seqs = 0
    elif share < 1.0:
        target.b_s /= share
        target.c_s /= share
        target.d_s /= share
        target.q_s /= share
        target.kv_blocks = int(target.kv_blocks * share)
        target.max_num_seqs = int(target.max_num_seqs * share)
        target.max_num_batched_tokens = max(int(target.max_num_batched_tokens * share), target.max_num_seqs)


@rule
def _set_means(w, kind, node):
    """Write the mean prompt and answer of a kind of demand, by the trapezoids of its quantile table."""
    rows = w.setting[0].length_rows
    first = w.kind[kind].table * rows
    node.mean_prompt = 0.0
    node.mean_forecast = 0.0
    for k in range(first, first + rows - 1):
        here = w.length[k]
        there = w.length[k + 1]
        half = 0.5 * (there.p - here.p)
        node.mean_prompt += half * (here.prompt_tokens + there.prompt_tokens)
        node.mean_forecast += half * (here.output_tokens + there.output_tokens)
    node.mean_forecast = min(node.mean_forecast, float(w.kind[kind].max_tokens))


@rule
def _rotate(w, n, p, driver, unit):
    """Write the schedule of provider p, begun at a random time of its own and wrapped round; rates are times `unit`."""
    place = w.place[p]
    count = place.segments
    shift = place.shift_s * chance(w, n, p, SETUP)
    first = 0
    while first < count and place.until_s[first] <= shift:
        first += 1
    driver.segments = 0
    passed = 0.0
    for step in range(count + 1 if shift > 0.0 else count):
        j = (first + step) % count
        start = place.until_s[j - 1] if j > 0 else 0.0
        end = place.until_s[j]
        if step == 0:
            start = shift
        elif step == count:
            end = shift
        if end > start:
            passed += end - start
            driver.until_s[driver.segments] = passed
            driver.rate[driver.segments] = unit * (place.low[j] + (place.high[j] - place.low[j]) * chance(w, n, p, SETUP))
            driver.segments += 1


@rule
def _set_demand(w, n, p, g):
    """Draw this episode's demand of provider p: its kind, and a rate for each piece of its schedule."""
    place = w.place[p]
    driver = w.driver[g]
    node = w.node[g]
    driver.kind = _pick(w, n, p, place.class_first, place.class_count)
    node.slo_s = w.kind[driver.kind].slo_s
    _set_means(w, driver.kind, node)
    provider.size_up(node, w.profile[g])
    unit = node.capacity_tps / node.mean_forecast if place.of_capacity == 1 else 1.0
    _rotate(w, n, p, driver, unit)
    # Both states begin with their share of time: `_toggle` goes to the other one and draws how long it lasts.
    in_burst = chance(w, n, p, BURST) < place.burst_s / (place.burst_s + place.calm_s)
    driver.bursting = 0 if in_burst else 1
    driver.toggle_s = 0.0
    toggle_burst(w, n, p, place, driver)
    driver.trace_place = 0


@rule
def _open_provider(w, n, p):
    """Make provider p as new: profile, demand, account, empty engine, online or yet to join."""
    setting = w.setting[0]
    terms = w.terms[0]
    place = w.place[p]
    g = n * setting.providers + p
    driver = w.driver[g]
    for purpose in range(PURPOSES):
        driver.draws[purpose] = 0
    _set_profile(w, n, p, g)
    provider.open_node(w.node[g], 1.0)
    _set_demand(w, n, p, g)
    driver.region = _pick(w, n, p, place.region_first, place.region_count)
    close_engine(w, n, p, 0.0)
    w.engine[g].executed_tokens = 0
    ledger.open_account(w.account[g], place.credit_micro, place.stake_micro)
    intent_of_action(w.node[g], 0, 0, 0)
    driver.due_head = NONE
    driver.due_tail = NONE
    driver.due_s = NEVER
    driver.attained = 0
    driver.missed = 0
    driver.lost_head = NONE
    driver.tokens_mark = 0
    driver.wealth_mark = ledger.wealth(w.account[g])
    driver.decision_s = 0.0
    driver.dispatch_next_s = 0.0
    driver.review_next_s = terms.reoffer_s * chance(w, n, p, SETUP)
    w.node[g].online = 1 if place.join_s <= 0.0 else 0


@rule
def _open_roster(w, n, p):
    """Let provider p know all who are online at the start, and nobody else."""
    providers = w.setting[0].providers
    for q in range(providers):
        row = w.row[(n * providers + p) * providers + q]
        known = w.node[n * providers + q].online == 1 and w.node[n * providers + p].online == 1
        row.version = 1 if known else 0
        row.status = gossip.ALIVE if known or p == q else gossip.GONE
        row.changed_s = 0.0
        row.posted_s = 0.0
        row.wait_s = 0.0
        row.usage = 0.0
        row.accepts = 1.0 if known else 0.0
        row.duels_won = 0
        row.duels_lost = 0


@rule
def _open_slots(w, n):
    """Empty the request slots, messages and duels of network n."""
    setting = w.setting[0]
    net = w.net[n]
    first = n * setting.requests
    for r in range(first, first + setting.requests):
        w.request[r].state = FREE
        w.request[r].next = r + 1
        w.request[r].duel = NONE
    w.request[first + setting.requests - 1].next = NONE
    net.free_head = first
    net.free = setting.requests
    net.events = 0
    net.order = 0
    for k in range(n * setting.duels, (n + 1) * setting.duels):
        w.duel[k].origin = NONE
        w.duel[k].open = 0
        w.duel[k].request = NONE
        w.duel[k].generation = 0
    net.duels = 0
    net.logged = 0
    net.arrived = 0
    net.answered = 0
    net.failed = 0
    net.step = 0
    net.end_step = setting.steps


@rule
def reset_network(w, n):
    """Start the next episode of network n: a new key, so new places, demand and chance."""
    setting = w.setting[0]
    net = w.net[n]
    high = int(uniform(net.base_key, EPISODE, 2 * net.episode) * 2147483648.0)
    low = int(uniform(net.base_key, EPISODE, 2 * net.episode + 1) * 4294967296.0)
    net.key = (high << 32) | low | 1
    net.episode += 1
    _open_slots(w, n)
    for p in range(setting.providers):
        _open_provider(w, n, p)
    net.room = 1 << 40
    for p in range(setting.providers):
        net.room = min(net.room, BLOCK_TOKENS * w.profile[n * setting.providers + p].kv_blocks)
        _open_roster(w, n, p)
    for p in range(setting.providers):
        g = n * setting.providers + p
        driver = w.driver[g]
        online = w.node[g].online == 1
        driver.gossip_next_s = w.terms[0].gossip_s * chance(w, n, p, GOSSIP) if online else NEVER
        driver.arrival_next_s = next_arrival_s(w, n, p, 0.0) if online else NEVER
        driver.churn_next_s = next_churn_s(w, n, p, 0.0) if online else w.place[p].join_s
        set_wake(w, g)
