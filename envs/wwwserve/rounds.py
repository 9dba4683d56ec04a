"""Gossip rounds, and providers that come, crash and go."""

from envs.wwwserve.pool import chance, set_wake
from envs.wwwserve.results import lose, recover
from envs.wwwserve.serve import close_engine
from envs.wwwserve.state import CHURN, GOSSIP, NEVER, NONE
from envs.wwwserve.workload import next_arrival_s
from market import gossip, provider, serving
from market.chance import exponential
from market.rule import rule


@rule
def _exchange(w, n, p, q, now):
    """Providers p and q tell each other all that they have heard: each keeps the newer row."""
    providers = w.setting[0].providers
    mine = (n * providers + p) * providers
    theirs = (n * providers + q) * providers
    for subject in range(providers):
        row = w.row[mine + subject]
        other = w.row[theirs + subject]
        newer = row if row.version > other.version else other
        older = other if row.version > other.version else row
        gossip.merge(older, newer, now)


@rule
def _beat(w, n, p, now, step):
    """Write what provider p posts about itself."""
    providers = w.setting[0].providers
    g = n * providers + p
    serving.advance(w.engine[g], w.profile[g], w.request, now)
    provider.post(w.row[g * providers + p], w.node[g], w.engine[g], w.profile[g], now, step)


@rule
def on_gossip(w, n, p, now):
    """One gossip round of provider p: post, exchange with one partner, let silence count, sum up the market."""
    providers = w.setting[0].providers
    terms = w.terms[0]
    g = n * providers + p
    first_row = g * providers
    _beat(w, n, p, now, 1)
    q = gossip.partner(w.row, first_row, providers, p, chance(w, n, p, GOSSIP))
    if q != NONE:
        if w.node[n * providers + q].online == 1:
            _exchange(w, n, p, q, now)
        else:
            gossip.suspect(w.row[first_row + q], now)
    for peer in range(providers):
        if peer != p:
            gossip.age(w.row[first_row + peer], now, terms.suspect_s, terms.gone_s)
    provider.size_up(w.node[g], w.profile[g])
    provider.survey(w.node[g], w.row, first_row, w.account, n * providers, providers, p, now)
    w.driver[g].gossip_next_s = now + terms.gossip_s
    set_wake(w, g)
    if w.driver[g].lost_head != NONE:
        recover(w, n, p, now)


@rule
def _lose_list(w, n, p, r):
    """Lose every request of a linked list."""
    while r != NONE:
        following = w.request[r].next
        lose(w, n, p, r)
        r = following


@rule
def crash(w, n, p, now):
    """Provider p stops at once: what it held is lost, and nobody is told."""
    g = n * w.setting[0].providers + p
    node = w.node[g]
    engine = w.engine[g]
    driver = w.driver[g]
    node.online = 0
    _lose_list(w, n, p, node.queue_head)
    _lose_list(w, n, p, engine.waiting_head if engine.waiting > 0 else NONE)
    _lose_list(w, n, p, engine.done_head)
    for place in range(engine.running):
        lose(w, n, p, engine.heap[place])
    if engine.partial != NONE:
        lose(w, n, p, engine.partial)
    node.queue_head = NONE
    node.queue_tail = NONE
    node.queued = 0
    node.queued_prompt = 0
    node.queued_output = 0
    close_engine(w, n, p, now)
    driver.gossip_next_s = NEVER
    driver.arrival_next_s = NEVER


@rule
def _contact(w, n, p):
    """The one address that a joining provider knows: some provider that is online, or NONE."""
    providers = w.setting[0].providers
    start = int(chance(w, n, p, GOSSIP) * providers)
    for k in range(providers):
        q = (start + k) % providers
        if q != p and w.node[n * providers + q].online == 1:
            return q
    return NONE


@rule
def join(w, n, p, now):
    """Provider p comes online, in a new incarnation, and asks one known address for the roster."""
    providers = w.setting[0].providers
    g = n * providers + p
    w.node[g].online = 1
    _beat(w, n, p, now, gossip.INCARNATION)
    q = _contact(w, n, p)
    if q != NONE:
        _exchange(w, n, p, q, now)
    driver = w.driver[g]
    driver.arrival_next_s = next_arrival_s(w, n, p, now)
    driver.gossip_next_s = now + w.terms[0].gossip_s * chance(w, n, p, GOSSIP)


@rule
def next_churn_s(w, n, p, now):
    """When provider p next comes or goes (s); NEVER when it stays as it is."""
    place = w.place[p]
    g = n * w.setting[0].providers + p
    if w.node[g].online == 0:
        if now >= place.leave_s:
            return NEVER
        return now + place.down_s * exponential(chance(w, n, p, CHURN))
    when = place.leave_s if place.leave_s > now else NEVER
    if place.up_s < NEVER:
        when = min(when, now + place.up_s * exponential(chance(w, n, p, CHURN)))
    return when


@rule
def on_churn(w, n, p, now):
    """Provider p comes or goes."""
    g = n * w.setting[0].providers + p
    if w.node[g].online == 1:
        crash(w, n, p, now)
    else:
        join(w, n, p, now)
    w.driver[g].churn_next_s = next_churn_s(w, n, p, now)
    set_wake(w, g)
