"""One control step of a network: post the agents' intents, let time pass event by event and tick by tick, reward, observe."""

from envs.wwwserve.answers import count_due, fail_and_free, open_request
from envs.wwwserve.central import schedule
from envs.wwwserve.duels import on_duel_end
from envs.wwwserve.messages import ACCEPTED, ASSIGN, DECLINED, DUEL_END, OFFER, RESULT, SILENCE
from envs.wwwserve.offers import on_offer, on_refusal, receive, review
from envs.wwwserve.pool import drop_first, set_wake, take_slot
from envs.wwwserve.reset import reset_network
from envs.wwwserve.results import on_accepted, on_assigned, on_result, recover
from envs.wwwserve.rounds import on_churn, on_gossip
from envs.wwwserve.serve import on_engine
from envs.wwwserve.state import MARKET_DISPATCH, NONE, USER
from envs.wwwserve.workload import draw_lengths, next_arrival_s
from market import ledger, provider, serving, stake
from market.action import LEVELS, intent_of_action, intent_of_paper, write_mask
from market.observation import write_observation
from market.rule import rule

PARTS = 4
"""Parts of a reward: attained, missed, change of wealth, tokens executed."""


@rule
def on_arrival(w, n, p, now):
    """An own request arrives at provider p."""
    setting = w.setting[0]
    g = n * setting.providers + p
    r = take_slot(w, n, 0)
    request = w.request[r]
    request.kind = USER
    request.origin = p
    request.executor = p
    draw_lengths(w, n, p, request)
    provider.note_arrival(w.node[g], request.prompt_tokens, request.forecast_tokens)
    open_request(w, n, p, r, now)
    if w.net[n].free == 0:
        # The last slot is never kept: the request that finds no other is refused, which counts as a failure.
        fail_and_free(w, n, r)
    elif setting.dispatch == MARKET_DISPATCH:
        receive(w, n, p, r, now)
    else:
        schedule(w, n, p, r, now)
    w.driver[g].arrival_next_s = next_arrival_s(w, n, p, now)
    set_wake(w, g)


@rule
def _on_message(w, n):
    """Handle the earliest message of network n."""
    event = w.event[n * w.setting[0].events]
    now = event.time_s
    kind = event.kind
    r = event.request
    q = event.peer
    drop_first(w, n)
    if kind == OFFER:
        on_offer(w, n, r, q, now)
    elif kind == DECLINED or kind == SILENCE:
        on_refusal(w, n, r, q, now, 1 if kind == SILENCE else 0)
    elif kind == ACCEPTED:
        on_accepted(w, n, r, now)
    elif kind == RESULT:
        on_result(w, n, r, q, now)
    elif kind == ASSIGN:
        on_assigned(w, n, r, q, now)
    elif kind == DUEL_END:
        on_duel_end(w, n, r)


@rule
def _on_wake(w, n, p):
    """Handle what is due first at provider p: its engine, an arrival, a gossip round, or churn."""
    g = n * w.setting[0].providers + p
    driver = w.driver[g]
    now = w.wake[g]
    if driver.engine_next_s <= now:
        on_engine(w, n, p, now)
    elif driver.arrival_next_s <= now:
        on_arrival(w, n, p, now)
    elif driver.gossip_next_s <= now:
        on_gossip(w, n, p, now)
    else:
        on_churn(w, n, p, now)


@rule
def _first_awake(wake, first, providers):
    """The provider that has something to do first."""
    best = 0
    soonest = wake[first]
    for p in range(1, providers):
        when = wake[first + p]
        best = p if when < soonest else best
        soonest = min(when, soonest)
    return best


@rule
def _run_until(w, n, until):
    """Handle all events of network n before `until` (s), in order of time."""
    setting = w.setting[0]
    first = n * setting.providers
    net = w.net[n]
    while True:
        best = _first_awake(w.wake, first, setting.providers)
        soonest = w.wake[first + best]
        if net.events > 0 and w.event[n * setting.events].time_s <= soonest:
            if w.event[n * setting.events].time_s >= until:
                return
            _on_message(w, n)
        elif soonest < until:
            _on_wake(w, n, best)
        else:
            return


@rule
def _post_intent(w, n, p, actions, now):
    """Take the action of provider p as its intent until the next decision."""
    g = n * w.setting[0].providers + p
    intent_of_action(w.node[g], actions[g, 0], actions[g, 1], actions[g, 2])
    w.driver[g].decision_s = now


@rule
def _open_tick(w, n, p, now):
    """Upkeep of provider p before a tick: pinned rules set their intent anew; stake moves towards its target, unless offline."""
    setting = w.setting[0]
    terms = w.terms[0]
    g = n * setting.providers + p
    node = w.node[g]
    account = w.account[g]
    ledger.mature(account, now)
    if node.online == 0:
        return
    if w.driver[g].pinned == 1:
        engine = w.engine[g]
        serving.advance(engine, w.profile[g], w.request, now)
        intent_of_paper(node, terms, serving.usage(engine, w.profile[g]), engine.waiting, node.queued)
    target = stake.goal(node, ledger.wealth(account), terms.bond_micro)
    ledger.steer_stake(account, target, int(terms.stake_rate_micro * setting.tick_s), now + terms.unbond_s)


@rule
def _close_tick(w, n, p, now):
    """Upkeep of provider p after a tick: deadlines, averages, waiting work."""
    setting = w.setting[0]
    g = n * setting.providers + p
    driver = w.driver[g]
    count_due(w, g, now)
    provider.tick(w.node[g], setting.tick_s)
    if w.node[g].online == 0 and driver.lost_head != NONE:
        recover(w, n, p, now)
    if w.node[g].queue_head != NONE and now >= driver.review_next_s:
        driver.review_next_s = now + w.terms[0].reoffer_s
        serving.advance(w.engine[g], w.profile[g], w.request, now)
        if setting.dispatch == MARKET_DISPATCH:
            review(w, n, p, now)
            on_engine(w, n, p, now)


@rule
def _reward(w, n, p, now, rewards, parts):
    """Write the reward of provider p for what happened since the last one, and its parts."""
    setting = w.setting[0]
    g = n * setting.providers + p
    driver = w.driver[g]
    engine = w.engine[g]
    serving.advance(engine, w.profile[g], w.request, now)
    wealth = ledger.wealth(w.account[g])
    parts[g, 0] = driver.attained
    parts[g, 1] = driver.missed
    parts[g, 2] = (wealth - driver.wealth_mark) / 1e6
    parts[g, 3] = engine.executed_tokens - driver.tokens_mark
    gain = setting.value * parts[g, 0] - setting.penalty * parts[g, 1]
    rewards[g] = gain + setting.exchange * parts[g, 2] - setting.energy * parts[g, 3]
    driver.attained = 0
    driver.missed = 0
    driver.wealth_mark = wealth
    driver.tokens_mark = engine.executed_tokens


@rule
def _blend(w, n, rewards):
    """Blend each reward with the mean of its network."""
    setting = w.setting[0]
    first = n * setting.providers
    total = 0.0
    for p in range(setting.providers):
        total += rewards[first + p]
    mean = total / setting.providers
    for p in range(setting.providers):
        rewards[first + p] += setting.social * (mean - rewards[first + p])


@rule
def observe(w, n, now, observations, masks):
    """Write what each provider of network n sees and may do."""
    setting = w.setting[0]
    for p in range(setting.providers):
        g = n * setting.providers + p
        node = w.node[g]
        engine = w.engine[g]
        profile = w.profile[g]
        account = w.account[g]
        serving.advance(engine, profile, w.request, now)
        oldest_s = 0.0
        if node.queue_head != NONE:
            oldest_s = now - w.request[node.queue_head].arrival_s
        cost = provider.price(w.terms[0], int(node.mean_prompt), int(node.mean_forecast))
        gap_s = now - w.driver[g].decision_s
        write_observation(observations[g], node, engine, profile, account, cost, oldest_s, gap_s)
        write_mask(masks[g], 0, node.online, account.credit_micro, cost)


@rule
def step_network(w, n, actions, observations, masks, rewards, parts, truncated, final):
    """Advance network n by one control step; a network at its end is reset when the setting says so.

    actions       (networks * providers, 3) int64 levels
    observations  (networks * providers, OBSERVATION_SIZE) float32, written
    masks         (networks * providers, 15) int8, written
    rewards       (networks * providers,) float64, written
    parts         (networks * providers, 4) float64, written
    truncated     (networks,) bool, written
    final         like observations; written where an episode ends
    """
    setting = w.setting[0]
    net = w.net[n]
    first_tick = net.step * setting.ticks
    for p in range(setting.providers):
        _post_intent(w, n, p, actions, first_tick * setting.tick_s)
    for tick in range(first_tick, first_tick + setting.ticks):
        for p in range(setting.providers):
            _open_tick(w, n, p, tick * setting.tick_s)
        _run_until(w, n, (tick + 1) * setting.tick_s)
        for p in range(setting.providers):
            _close_tick(w, n, p, (tick + 1) * setting.tick_s)
    until = (first_tick + setting.ticks) * setting.tick_s
    for p in range(setting.providers):
        _reward(w, n, p, until, rewards, parts)
    if setting.social > 0.0:
        _blend(w, n, rewards)
    net.step += 1
    truncated[n] = net.step >= net.end_step
    if truncated[n] and setting.autoreset == 1:
        observe(w, n, until, final, masks)
        reset_network(w, n)
        until = 0.0
    observe(w, n, until, observations, masks)


@rule
def step_networks(w, first, last, actions, observations, masks, rewards, parts, truncated, final):
    """Advance networks first .. last - 1 by one control step; arrays as in `step_network`."""
    for n in range(first, last):
        step_network(w, n, actions, observations, masks, rewards, parts, truncated, final)


@rule
def reset_networks(w, first, last, observations, masks):
    """Start new episodes in networks first .. last - 1."""
    for n in range(first, last):
        reset_network(w, n)
        observe(w, n, 0.0, observations, masks)


@rule
def legal(masks, actions):
    """Index of the first row whose action is out of range or masked, -1 when there is none."""
    for g in range(actions.shape[0]):
        for head in range(3):
            level = actions[g, head]
            if level < 0 or level >= LEVELS or masks[g, head * LEVELS + level] == 0:
                return g
    return -1
