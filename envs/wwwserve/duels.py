"""Duels in the simulated world: a second copy is executed, judges read both answers, votes move stake."""

from envs.wwwserve.messages import ASSIGN, DUEL_END
from envs.wwwserve.offers import offer
from envs.wwwserve.pool import chance, delay_s, free_slot, send, take_slot
from envs.wwwserve.state import COPY, JUDGE, MARKET, NONE, REMOTE
from market import duel as rules
from market import gossip, ledger, stake
from market.rule import rule

SPARE = 1
"""Request slots that duels leave to users."""


@rule
def _free_duel(w, n):
    setting = w.setting[0]
    if w.net[n].duels < setting.duels:
        for k in range(n * setting.duels, (n + 1) * setting.duels):
            if w.duel[k].origin == NONE:
                return k
    return NONE


@rule
def begin_duel(w, n, r, now):
    """Look for a second executor of request r, which a peer has just taken; without a free slot nothing happens."""
    k = _free_duel(w, n)
    if k == NONE:
        return
    copy = take_slot(w, n, SPARE)
    if copy == NONE:
        return
    request = w.request[r]
    twin = w.request[copy]
    twin.kind = COPY
    twin.origin = request.origin
    twin.prompt_tokens = request.prompt_tokens
    twin.output_tokens = request.output_tokens
    twin.forecast_tokens = request.forecast_tokens
    twin.arrival_s = request.arrival_s
    twin.deadline_s = request.deadline_s
    twin.banned[0] = request.origin
    twin.banned[1] = request.executor
    twin.banned_count = 2
    _open(w, n, k, r, copy, now)
    offer(w, n, copy, now)


@rule
def _open(w, n, k, r, copy, now):
    """Tie two requests to duel slot k; they stay tied while the slot's generation is theirs."""
    duel = w.duel[k]
    request = w.request[r]
    duel.generation += 1
    duel.origin = request.origin
    duel.open = 1
    duel.request = r
    duel.executor_a = request.executor
    duel.executor_b = NONE
    duel.answers = 0
    duel.judges = 0
    duel.pending = 0
    duel.fee_micro = 0
    duel.opened_s = now
    duel.prompt_tokens = request.prompt_tokens + 2 * request.output_tokens
    w.net[n].duels += 1
    request.duel = k
    request.generation = duel.generation
    w.request[copy].duel = k
    w.request[copy].generation = duel.generation
    send(w, n, now + w.terms[0].duel_ttl_s, DUEL_END, k, NONE)


@rule
def is_open(w, k, generation):
    """Whether the duel that a message speaks of still waits for answers or votes."""
    return k != NONE and w.duel[k].generation == generation and w.duel[k].open == 1


@rule
def call_off(w, request):
    """End the duel over a request that is dispatched anew without a decision: its first executor will not answer."""
    if is_open(w, request.duel, request.generation):
        w.duel[request.duel].open = 0
        w.duel[request.duel].request = NONE
    request.duel = NONE


@rule
def on_answer(w, n, r, now):
    """One of the two answers is in at the origin; with both, judges are drawn."""
    request = w.request[r]
    k = request.duel
    if not is_open(w, k, request.generation):
        return
    duel = w.duel[k]
    if request.kind == COPY:
        duel.executor_b = request.executor
    duel.answers += 1
    if duel.answers == 2:
        _draw_judges(w, n, k, now)


@rule
def _draw_judges(w, n, k, now):
    """Draw judges by stake, never the origin nor (but by the terms) a duellist, and send them the question with both answers."""
    setting = w.setting[0]
    terms = w.terms[0]
    duel = w.duel[k]
    p = duel.origin
    first = n * setting.providers
    judge = take_slot(w, n, SPARE)
    if judge == NONE:
        return
    banned = w.request[judge].banned
    banned[0] = p
    banned[1] = duel.executor_a
    banned[2] = duel.executor_b
    count = 1 if terms.duellists_judge == 1 else 3
    for seat in range(terms.judges):
        u = chance(w, n, p, MARKET)
        peer = stake.draw(
            w.account, w.row, first, (first + p) * setting.providers, setting.providers, banned, count, terms.bond_micro, u
        )
        if peer == NONE or not ledger.set_aside(w.account[first + p], terms.judge_fee_micro, terms.escrow):
            break
        duel.judge[seat] = peer
        duel.vote[seat] = rules.PENDING
        duel.judges += 1
        banned[count] = peer
        count += 1
    free_slot(w, n, judge)
    duel.fee_micro = terms.judge_fee_micro
    if duel.judges < terms.judges_least:
        _drop(w, n, duel)
    for seat in range(duel.judges):
        _send_judge(w, n, k, seat, now)


@rule
def _drop(w, n, duel):
    """End a duel for which too few judges were found: their fees go back, nothing is decided."""
    for _seat in range(duel.judges):
        ledger.give_back(w.account, n * w.setting[0].providers + duel.origin, duel.fee_micro, w.terms[0].escrow)
    duel.judges = 0
    duel.open = 0


@rule
def _send_judge(w, n, k, seat, now):
    """Send one judge its work; without a free slot its fee goes back and it counts as absent."""
    setting = w.setting[0]
    terms = w.terms[0]
    duel = w.duel[k]
    p = duel.origin
    first = n * setting.providers
    r = take_slot(w, n, SPARE)
    if r == NONE:
        ledger.give_back(w.account, first + p, duel.fee_micro, terms.escrow)
        duel.vote[seat] = rules.ABSTAIN
        return
    q = duel.judge[seat]
    request = w.request[r]
    request.kind = JUDGE
    request.state = REMOTE
    request.origin = p
    request.executor = q
    request.incarnation = w.row[(first + q) * setting.providers + q].version // gossip.INCARNATION
    request.output_tokens = terms.judge_tokens
    request.forecast_tokens = terms.judge_tokens
    request.prompt_tokens = max(min(duel.prompt_tokens, w.net[n].room - terms.judge_tokens), 1)
    request.held_micro = duel.fee_micro
    request.duel = k
    request.generation = duel.generation
    request.seat = seat
    request.arrival_s = now
    request.deadline_s = duel.opened_s + terms.duel_ttl_s
    duel.pending += 1
    w.node[first + q].guests += 1
    w.node[first + p].away += 1
    send(w, n, now + delay_s(w, n, p, q), ASSIGN, r, q)


@rule
def on_vote(w, n, r, now):
    """A judge's work is back at the origin: its vote counts while the duel is open."""
    setting = w.setting[0]
    request = w.request[r]
    k = request.duel
    duel = w.duel[k]
    if not is_open(w, k, request.generation):
        return
    first = n * setting.providers
    a = w.profile[first + duel.executor_a].quality
    b = w.profile[first + duel.executor_b].quality
    u = chance(w, n, request.executor, MARKET)
    honest = rules.vote(a, b, w.terms[0].judge_scale, u)
    mine = w.place[request.executor].coalition
    duel.vote[request.seat] = rules.loyal(honest, mine, w.place[duel.executor_a].coalition, w.place[duel.executor_b].coalition)
    duel.pending -= 1
    if duel.pending == 0:
        _settle(w, n, k)


@rule
def _settle(w, n, k):
    """Settle a duel with the votes in hand."""
    terms = w.terms[0]
    duel = w.duel[k]
    first = n * w.setting[0].providers
    if duel.judges > 0:
        result = rules.settle(
            duel, w.account, first, terms.slash_per_mille, terms.bond_micro, terms.minority_per_mille, terms.absent_per_mille
        )
        if result != rules.NONE:
            winner = duel.executor_a if result == rules.FOR_A else duel.executor_b
            loser = duel.executor_b if result == rules.FOR_A else duel.executor_a
            w.node[first + winner].duels_won += 1
            w.node[first + loser].duels_lost += 1
    duel.open = 0


@rule
def on_duel_end(w, n, k):
    """The time of a duel is over: settle it if it is still open, and free its slot."""
    if w.duel[k].open == 1:
        _settle(w, n, k)
    w.duel[k].origin = NONE
    w.net[n].duels -= 1
