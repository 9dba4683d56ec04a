"""What happens at a provider: its queue feeds its engine, and what the engine finishes goes to whoever waits for it."""

from envs.wwwserve.answers import answer
from envs.wwwserve.messages import RESULT
from envs.wwwserve.pool import delay_s, drop_queue, free_slot, push_queue, send, set_wake
from envs.wwwserve.state import NEVER, NONE, RETURNING, RUNNING, USER
from market import serving
from market.provider import may_start
from market.rule import rule


@rule
def feed(w, n, p, now):
    """Hand the engine what would start almost at once, let it begin, and note when to look again."""
    g = n * w.setting[0].providers + p
    node = w.node[g]
    engine = w.engine[g]
    profile = w.profile[g]
    backlog = w.terms[0].engine_backlog
    serving.advance(engine, profile, w.request, now)
    while node.queue_head != NONE:
        r = node.queue_head
        if not may_start(node, engine, profile, backlog, w.request[r].placed):
            break
        drop_queue(w, g, r, NONE)
        w.request[r].state = RUNNING
        serving.enqueue(engine, w.request, r, now)
    w.driver[g].engine_next_s = serving.begin(engine, profile, w.request, now)
    set_wake(w, g)


@rule
def put(w, n, p, r, now, placed):
    """Queue request r at provider p; `placed`: 1 when it is decided that it runs here."""
    w.request[r].placed = placed
    push_queue(w, n * w.setting[0].providers + p, r)
    feed(w, n, p, now)


@rule
def _hand_out(w, n, p, r):
    """Send a finished request to whoever waits for it."""
    g = n * w.setting[0].providers + p
    request = w.request[r]
    done_s = request.finish_s + w.profile[g].h_s
    if request.origin == p and request.kind == USER:
        answer(w, n, r, p, done_s, request.first_token_s + w.profile[g].h_s)
        free_slot(w, n, r)
        return
    w.node[g].guests -= 1
    request.state = RETURNING
    send(w, n, done_s + delay_s(w, n, p, request.origin), RESULT, r, p)


@rule
def on_engine(w, n, p, now):
    """Collect what the engine has finished by `now` and feed it."""
    g = n * w.setting[0].providers + p
    serving.advance(w.engine[g], w.profile[g], w.request, now)
    r = serving.collect(w.engine[g], w.request, now)
    while r != NONE:
        _hand_out(w, n, p, r)
        r = serving.collect(w.engine[g], w.request, now)
    feed(w, n, p, now)


@rule
def close_engine(w, n, p, now):
    """Empty the engine of a provider that begins or has crashed; what it held is the caller's to account for.

    Who has no engine has one that is full.
    """
    g = n * w.setting[0].providers + p
    serving.open_engine(w.engine[g], now)
    if w.profile[g].max_num_seqs == 0:
        w.engine[g].blocks_used = w.profile[g].kv_blocks
    w.driver[g].engine_next_s = NEVER
