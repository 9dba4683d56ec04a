"""The market at work: own requests are placed or offered, peers accept or decline, refusals try the next candidate."""

from envs.wwwserve.answers import fail_and_free
from envs.wwwserve.messages import ACCEPTED, DECLINED, OFFER, SILENCE
from envs.wwwserve.pool import chance, delay_s, drop_queue, free_slot, push_front, send
from envs.wwwserve.serve import feed, put
from envs.wwwserve.state import COPY, MARKET, NONE, OFFERED, REMOTE, USER
from market import gossip, ledger, provider, serving, stake
from market.rule import rule

REVIEW_MOST = 32
"""Waiting requests that a review looks at, from the head: those behind are looked at when the queue has moved."""


@rule
def _may_offer(w, n, p, request):
    g = n * w.setting[0].providers + p
    cost = provider.price(w.terms[0], request.prompt_tokens, request.forecast_tokens)
    return request.kind == USER and w.node[g].online == 1 and w.account[g].credit_micro >= cost


@rule
def _decide(w, n, p, r, forecast, now):
    """Ask the provider's rules what to do with own request r; chance is drawn only where they leave something to it."""
    g = n * w.setting[0].providers + p
    node = w.node[g]
    kv_use = serving.usage(w.engine[g], w.profile[g])
    remaining_s = w.request[r].deadline_s - now
    u_offload = chance(w, n, p, MARKET) if node.p_offload < 1.0 else 0.0
    u_queue = chance(w, n, p, MARKET) if node.p_queue < 1.0 else 0.0
    return provider.on_arrival(node, kv_use, forecast, remaining_s, _may_offer(w, n, p, w.request[r]), u_offload, u_queue)


@rule
def dispatch(w, n, p, r, now):
    """Decide about own request r of provider p, which stands in no queue: place, hold, or offer it."""
    g = n * w.setting[0].providers + p
    request = w.request[r]
    serving.advance(w.engine[g], w.profile[g], w.request, now)
    forecast = provider.forecast_here(w.node[g], w.engine[g], w.profile[g], request.prompt_tokens, request.forecast_tokens)
    decision = _decide(w, n, p, r, forecast, now)
    if decision == provider.OFFER:
        offer(w, n, r, now)
    else:
        put(w, n, p, r, now, 1 if decision == provider.LOCAL else 0)


@rule
def _may_decide(w, g, request, now):
    """Take provider g's (absolute) turn to decide about an own request; False while the last decision still takes its time.

    Where decisions take time, what was placed stays placed.
    """
    terms = w.terms[0]
    if terms.dispatch_s == 0.0:
        return True
    if request.placed == 1:
        return False
    turn_s = provider.take_turn(w.driver[g].dispatch_next_s, now, terms.dispatch_s, terms.reoffer_s)
    if turn_s < 0.0:
        return False
    w.driver[g].dispatch_next_s = turn_s
    return True


@rule
def receive(w, n, p, r, now):
    """Dispatch a new own request r of provider p in its turn; until then it stands in the queue, undecided."""
    g = n * w.setting[0].providers + p
    w.request[r].placed = 0
    if (w.terms[0].dispatch_s == 0.0 or w.node[g].queue_head == NONE) and _may_decide(w, g, w.request[r], now):
        dispatch(w, n, p, r, now)
    else:
        put(w, n, p, r, now, 0)


@rule
def offer(w, n, r, now):
    """Begin to offer request r to drawn peers, in turn."""
    request = w.request[r]
    request.state = OFFERED
    request.offered_s = now
    request.asked = 0
    if request.kind == USER:
        request.banned[0] = request.origin
        request.banned_count = 1
    ask_next(w, n, r, now)


@rule
def ask_next(w, n, r, now):
    """Offer request r to the next drawn peer, or take the refusal when there is none left."""
    setting = w.setting[0]
    request = w.request[r]
    p = request.origin
    first = n * setting.providers
    if request.asked < w.terms[0].candidates:
        u = chance(w, n, p, MARKET)
        peer = stake.draw(
            w.account,
            w.row,
            first,
            (first + p) * setting.providers,
            setting.providers,
            request.banned,
            request.banned_count,
            w.terms[0].bond_micro,
            u,
        )
        if peer != NONE:
            request.banned[request.banned_count] = peer
            request.banned_count += 1
            request.asked += 1
            send(w, n, now + delay_s(w, n, p, peer), OFFER, r, peer)
            return
    _refused(w, n, r, now)


@rule
def _refused(w, n, r, now):
    """Nobody takes request r: a user's request goes home, a duel's copy is given up."""
    request = w.request[r]
    p = request.origin
    g = n * w.setting[0].providers + p
    if request.kind == COPY:
        free_slot(w, n, r)
        return
    provider.note_offer(w.node[g], 0)
    u = chance(w, n, p, MARKET) if w.node[g].p_queue < 1.0 else 0.0
    request.placed = 1 if provider.place_refused(w.node[g], u) == provider.LOCAL else 0
    if request.waited == 1:
        push_front(w, g, r)
        feed(w, n, p, now)
    else:
        put(w, n, p, r, now, request.placed)


@rule
def on_offer(w, n, r, q, now):
    """Request r on offer reaches peer q: it takes the work, money set aside first, or declines."""
    g = n * w.setting[0].providers + q
    request = w.request[r]
    node = w.node[g]
    back_s = delay_s(w, n, q, request.origin)
    if node.online == 0:
        send(w, n, max(now, now - back_s + w.terms[0].offer_timeout_s), SILENCE, r, q)
        return
    node.offers_received += 1
    engine = w.engine[g]
    profile = w.profile[g]
    serving.advance(engine, profile, w.request, now)
    forecast = provider.forecast_here(node, engine, profile, request.prompt_tokens, request.forecast_tokens)
    kv_use = serving.usage(engine, profile)
    u = chance(w, n, q, MARKET) if node.p_accept < 1.0 else 0.0
    if provider.on_offer(node, kv_use, forecast, request.deadline_s - now, u):
        cost = provider.price(w.terms[0], request.prompt_tokens, request.forecast_tokens)
        if ledger.set_aside(w.account[n * w.setting[0].providers + request.origin], cost, w.terms[0].escrow):
            _take(w, n, r, q, cost, now)
            send(w, n, now + back_s, ACCEPTED, r, q)
            put(w, n, q, r, now, 1)
            return
    node.offers_declined += 1
    send(w, n, now + back_s, DECLINED, r, q)


@rule
def _take(w, n, r, q, cost, now):
    """Note that provider q executes request r for `cost` micro-credits in escrow."""
    first = n * w.setting[0].providers
    providers = w.setting[0].providers
    request = w.request[r]
    request.state = REMOTE
    request.executor = q
    request.incarnation = w.row[(first + q) * providers + q].version // gossip.INCARNATION
    request.held_micro = cost
    w.node[first + q].guests += 1
    w.node[first + request.origin].away += 1


@rule
def on_refusal(w, n, r, q, now, silent):
    """A refusal, or silence, from peer q reaches the origin: ask the next one."""
    setting = w.setting[0]
    p = w.request[r].origin
    if silent == 1:
        gossip.suspect(w.row[(n * setting.providers + p) * setting.providers + q], now)
    if w.node[n * setting.providers + p].online == 1:
        ask_next(w, n, r, now)
    elif w.request[r].kind == USER:
        fail_and_free(w, n, r)
    else:
        free_slot(w, n, r)


@rule
def _forecast_behind(w, g, r, ahead, ahead_prompt, ahead_output):
    """Forecast (s) of a waiting request's completion, given what stands before it in queue and engine."""
    engine = w.engine[g]
    return serving.forecast_s(
        w.profile[g],
        engine.running,
        engine.kv_tokens,
        engine.due_tokens,
        engine.waiting + ahead,
        engine.waiting_prompt + ahead_prompt,
        engine.waiting_output + ahead_output,
        w.request[r].prompt_tokens,
        w.request[r].forecast_tokens,
    )


@rule
def _sort_out(w, n, p, now):
    """Walk the queue of provider p: mark what is to run here, take out what is to be offered; returns a list of the latter.

    Offers begin after the walk, because a refusal changes the queue at once.
    """
    g = n * w.setting[0].providers + p
    ahead = 0
    ahead_prompt = 0
    ahead_output = 0
    previous = NONE
    leaving = NONE
    r = w.node[g].queue_head
    for _look in range(REVIEW_MOST):
        if r == NONE:
            break
        request = w.request[r]
        following = request.next
        decision = provider.HOLD
        mine = request.origin == p and request.kind == USER and now - request.offered_s >= w.terms[0].reoffer_s
        if mine and _may_decide(w, g, request, now):
            decision = _decide(w, n, p, r, _forecast_behind(w, g, r, ahead, ahead_prompt, ahead_output), now)
        if decision == provider.OFFER:
            drop_queue(w, g, r, previous)
            request.next = leaving
            leaving = r
        else:
            if decision == provider.LOCAL:
                request.placed = 1
            ahead += 1
            ahead_prompt += request.prompt_tokens
            ahead_output += request.forecast_tokens
            previous = r
        r = following
    return leaving


@rule
def review(w, n, p, now):
    """Look again at own work that waits in the queue: what no longer fits is offered, what was held may be placed."""
    r = _sort_out(w, n, p, now)
    while r != NONE:
        following = w.request[r].next
        offer(w, n, r, now)
        r = following
