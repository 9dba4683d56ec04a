"""Slots and lists of a network: request slots, the message heap, deadlines, provider queues. Bookkeeping without decisions."""

from envs.wwwserve.state import FREE, NEVER, NONE, PURPOSES, QUEUED
from market.chance import uniform
from market.rule import rule


@rule
def chance(w, n, p, purpose):
    """The next draw of provider p for one purpose: a uniform in (0, 1)."""
    driver = w.driver[n * w.setting[0].providers + p]
    draw = driver.draws[purpose]
    driver.draws[purpose] = draw + 1
    return uniform(w.net[n].key, p * PURPOSES + purpose, draw)


@rule
def delay_s(w, n, p, q):
    """One-way network delay (s) from provider p to q."""
    first = n * w.setting[0].providers
    return w.delay[w.driver[first + p].region * w.setting[0].regions + w.driver[first + q].region]


@rule
def set_wake(w, g):
    """Note when provider g (absolute) has its next thing to do."""
    d = w.driver[g]
    w.wake[g] = min(min(d.arrival_next_s, d.engine_next_s), min(d.gossip_next_s, d.churn_next_s))


@rule
def take_slot(w, n, keep):
    """Take a request slot of network n, or NONE when no more than `keep` are free."""
    net = w.net[n]
    r = NONE
    if net.free > keep:
        r = net.free_head
        net.free_head = w.request[r].next
        net.free -= 1
        w.request[r].next = NONE
        w.request[r].duel = NONE
        w.request[r].held_micro = 0
        w.request[r].waited = 0
        w.request[r].offered_s = -NEVER
    return r


@rule
def free_slot(w, n, r):
    """Give a request slot back; a duel over it learns that it is gone."""
    net = w.net[n]
    k = w.request[r].duel
    if k != NONE and w.duel[k].request == r and w.duel[k].generation == w.request[r].generation:
        w.duel[k].request = NONE
    w.request[r].state = FREE
    w.request[r].next = net.free_head
    net.free_head = r
    net.free += 1


@rule
def _earlier(a, b):
    return a.time_s < b.time_s or (a.time_s == b.time_s and a.order < b.order)


@rule
def _write(target, time_s, order, kind, request, peer):
    target.time_s = time_s
    target.order = order
    target.kind = kind
    target.request = request
    target.peer = peer


@rule
def _copy(target, source):
    _write(target, source.time_s, source.order, source.kind, source.request, source.peer)


@rule
def send(w, n, time_s, kind, request, peer):
    """Put a message on its way; it is handled at `time_s`. Equal times keep the order of sending."""
    net = w.net[n]
    setting = w.setting[0]
    assert net.events < setting.events
    base = n * setting.events
    place = net.events
    net.events += 1
    order = net.order
    net.order += 1
    while place > 0:
        parent = (place - 1) >> 1
        if w.event[base + parent].time_s <= time_s:
            break
        _copy(w.event[base + place], w.event[base + parent])
        place = parent
    _write(w.event[base + place], time_s, order, kind, request, peer)


@rule
def drop_first(w, n):
    """Take the earliest message off the heap."""
    net = w.net[n]
    base = n * w.setting[0].events
    net.events -= 1
    last = w.event[base + net.events]
    place = 0
    while True:
        child = 2 * place + 1
        if child >= net.events:
            break
        if child + 1 < net.events and _earlier(w.event[base + child + 1], w.event[base + child]):
            child += 1
        if not _earlier(w.event[base + child], last):
            break
        _copy(w.event[base + place], w.event[base + child])
        place = child
    if place < net.events:
        _copy(w.event[base + place], last)


@rule
def add_due(w, g, r):
    """Append a request to its origin's list of deadlines (g absolute): a provider's objective is one, so it stays sorted."""
    driver = w.driver[g]
    request = w.request[r]
    request.due_next = NONE
    request.due_previous = driver.due_tail
    if driver.due_tail == NONE:
        driver.due_head = r
        driver.due_s = request.deadline_s
    else:
        w.request[driver.due_tail].due_next = r
    driver.due_tail = r


@rule
def drop_due(w, g, r):
    """Take a request off its origin's list of deadlines."""
    driver = w.driver[g]
    request = w.request[r]
    if request.due_previous == NONE:
        driver.due_head = request.due_next
        driver.due_s = w.request[request.due_next].deadline_s if request.due_next != NONE else NEVER
    else:
        w.request[request.due_previous].due_next = request.due_next
    if request.due_next == NONE:
        driver.due_tail = request.due_previous
    else:
        w.request[request.due_next].due_previous = request.due_previous


@rule
def _count_in(w, g, r):
    """Count a request into the queue of provider g (absolute)."""
    node = w.node[g]
    request = w.request[r]
    request.state = QUEUED
    request.waited = 1
    node.queued += 1
    node.queued_prompt += request.prompt_tokens
    node.queued_output += request.forecast_tokens


@rule
def push_queue(w, g, r):
    """Append a request to the queue of provider g (absolute)."""
    node = w.node[g]
    w.request[r].next = NONE
    if node.queue_head == NONE:
        node.queue_head = r
    else:
        w.request[node.queue_tail].next = r
    node.queue_tail = r
    _count_in(w, g, r)


@rule
def push_front(w, g, r):
    """Put a request that has waited before back at the front of the queue of provider g (absolute)."""
    node = w.node[g]
    w.request[r].next = node.queue_head
    if node.queue_head == NONE:
        node.queue_tail = r
    node.queue_head = r
    _count_in(w, g, r)


@rule
def drop_queue(w, g, r, previous):
    """Take request r out of the queue of provider g; `previous` stands before it, NONE when r is the head."""
    node = w.node[g]
    request = w.request[r]
    if previous == NONE:
        node.queue_head = request.next
    else:
        w.request[previous].next = request.next
    if node.queue_tail == r:
        node.queue_tail = previous
    node.queued -= 1
    node.queued_prompt -= request.prompt_tokens
    node.queued_output -= request.forecast_tokens
    request.next = NONE


@rule
def add_lost(w, g, r):
    """Put a request among those that provider g (absolute) has lost to a crash, in order of index."""
    driver = w.driver[g]
    previous = NONE
    following = driver.lost_head
    while following != NONE and following < r:
        previous = following
        following = w.request[following].next
    w.request[r].next = following
    if previous == NONE:
        driver.lost_head = r
    else:
        w.request[previous].next = r


@rule
def drop_lost(w, g, r, previous):
    """Take request r off those that provider g has lost; `previous` stands before it, NONE when r is the head."""
    if previous == NONE:
        w.driver[g].lost_head = w.request[r].next
    else:
        w.request[previous].next = w.request[r].next
    w.request[r].next = NONE
