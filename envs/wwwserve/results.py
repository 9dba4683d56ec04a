"""What travels back: acceptances, answers and votes reach the origin; work that a crash has swallowed returns to it."""

from envs.wwwserve.answers import answer, fail_and_free
from envs.wwwserve.central import schedule
from envs.wwwserve.duels import begin_duel, call_off, is_open, on_answer, on_vote
from envs.wwwserve.offers import dispatch
from envs.wwwserve.pool import add_lost, chance, drop_lost, free_slot
from envs.wwwserve.serve import put
from envs.wwwserve.state import COPY, JUDGE, LOST, MARKET, MARKET_DISPATCH, NONE, USER
from market import gossip, ledger, provider
from market.rule import rule


@rule
def on_accepted(w, n, r, now):
    """Peer's acceptance reaches the origin: remember it, and duel the request by chance."""
    request = w.request[r]
    p = request.origin
    g = n * w.setting[0].providers + p
    if request.kind != USER:
        return
    provider.note_offer(w.node[g], 1)
    rate = w.terms[0].duel_rate
    if rate > 0.0 and w.node[g].online == 1 and chance(w, n, p, MARKET) < rate:
        begin_duel(w, n, r, now)


@rule
def _pay(w, n, p, q, held):
    """Pay executor q of provider p's work what was set aside for it, or promised."""
    first = n * w.setting[0].providers
    paid = ledger.pay_up(w.account, first + p, first + q, held, w.terms[0].escrow)
    w.node[first + p].spend_micro += paid
    w.node[first + q].income_micro += paid
    w.node[first + p].away -= 1


@rule
def on_result(w, n, r, q, now):
    """An answer, or a vote, by executor q reaches the origin: it is paid, and the user or the duel gets it."""
    request = w.request[r]
    p = request.origin
    node = w.node[n * w.setting[0].providers + p]
    _pay(w, n, p, q, request.held_micro)
    first_token_s = now - request.finish_s + request.first_token_s
    if request.kind == JUDGE:
        on_vote(w, n, r, now)
    elif request.kind == COPY:
        twin = w.duel[request.duel].request if is_open(w, request.duel, request.generation) else NONE
        if twin != NONE and node.online == 1:
            answer(w, n, twin, q, now, first_token_s)
        on_answer(w, n, r, now)
    elif node.online == 1:
        provider.note_delegated(node, now - request.arrival_s)
        answer(w, n, r, q, now, first_token_s)
        on_answer(w, n, r, now)
    else:
        fail_and_free(w, n, r)
        return
    free_slot(w, n, r)


@rule
def on_assigned(w, n, r, q, now):
    """Work sent without an offer reaches executor q."""
    if w.node[n * w.setting[0].providers + q].online == 1:
        put(w, n, q, r, now, 1)
    else:
        lose(w, n, q, r)


@rule
def lose(w, n, q, r):
    """Executor q has crashed with request r: a user of its own is told, other origins find out by gossip."""
    request = w.request[r]
    if request.origin == q and request.kind == USER:
        fail_and_free(w, n, r)
        return
    request.state = LOST
    first = n * w.setting[0].providers
    w.node[first + q].guests -= 1
    add_lost(w, first + request.origin, r)


@rule
def _given_up(w, n, p, request, now):
    """Whether provider p waits no longer for lost work: it believes the executor gone, or restarted since.

    One that is offline hears of nothing and may never come back: it gives up at the deadline.
    """
    providers = w.setting[0].providers
    g = n * providers + p
    if w.node[g].online == 0:
        return request.deadline_s <= now
    row = w.row[g * providers + request.executor]
    return row.status == gossip.GONE or row.version // gossip.INCARNATION > request.incarnation


@rule
def recover(w, n, p, now):
    """Take back the lost work of provider p that it has given up."""
    g = n * w.setting[0].providers + p
    previous = NONE
    r = w.driver[g].lost_head
    while r != NONE:
        request = w.request[r]
        following = request.next
        if _given_up(w, n, p, request, now):
            drop_lost(w, g, r, previous)
            _take_back(w, n, p, r, now)
        else:
            previous = r
        r = following


@rule
def _take_back(w, n, p, r, now):
    """Release what provider p has set aside for lost request r; one that a user waits for is dispatched anew, or fails offline."""
    g = n * w.setting[0].providers + p
    request = w.request[r]
    ledger.give_back(w.account, g, request.held_micro, w.terms[0].escrow)
    request.held_micro = 0
    w.node[g].away -= 1
    if request.kind != USER or request.answered == 1:
        free_slot(w, n, r)
        return
    if w.node[g].online == 0:
        fail_and_free(w, n, r)
        return
    call_off(w, request)
    if w.setting[0].dispatch == MARKET_DISPATCH:
        dispatch(w, n, p, r, now)
    else:
        schedule(w, n, p, r, now)
