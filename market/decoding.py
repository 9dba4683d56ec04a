"""The records of an engine, and who decodes in it: who finishes next, who was admitted last, which KV blocks they take.

Knows nothing of time or cost: `market.serving` says when an iteration ends.
source   vLLM V1 scheduler: 16-token blocks, recompute preemption of the last running, back to the head of the waiting ones
"""

import math

from market.rule import SHORT, layout, rule

BLOCK_SHIFT = 4
BLOCK_TOKENS = 1 << BLOCK_SHIFT
NEVER = math.inf
NONE = -1

PROFILE = layout(
    a_s=float,  # s, floor of an iteration (memory bound: weights read once)
    a2_s=float,  # s, fixed part of a compute-bound iteration
    b_s=float,  # s per token that an iteration computes (prefill and decode)
    c_s=float,  # s per decoding request
    d_s=float,  # s per KV token that decoding requests attend to
    e_s=float,  # s added to an iteration with any prefill
    q_s=float,  # s per (prefill token x context token): attention inside prefill
    h_s=float,  # s per request outside the engine (HTTP, tokeniser)
    kv_blocks=int,  # 16-token KV blocks
    max_num_seqs=int,  # requests running at once
    max_num_batched_tokens=int,  # tokens an iteration may compute; >= max_num_seqs
    quality=float,  # answer quality, arbitrary units; only differences matter (duels)
)

SLOTS = 256
"""Most requests that any engine can run at once (capacity of the finish heap)."""
ORDER_BITS = 32
"""Bits of an admission number: of requests that finish with the same iteration, the one admitted first comes first."""
_ORDER = (1 << ORDER_BITS) - 1

ENGINE = layout(
    clock_s=float,  # start of the next iteration = end of the last one committed
    iteration=int,  # iterations committed
    admissions=int,  # requests admitted so far: their order is the order of preemption
    running=int,  # decoding requests = size of the finish heap
    kv_tokens=int,  # KV tokens that decoding requests hold
    blocks_used=int,  # KV blocks held by all admitted requests
    due_tokens=int,  # forecast output tokens still to come from decoding requests
    executed_tokens=int,  # tokens computed so far, prefill and decode
    partial=int,  # request whose prefill is under way, or NONE
    waiting=int,  # requests handed to the engine, not yet admitted
    waiting_head=int,
    waiting_tail=int,
    waiting_prompt=int,  # tokens
    waiting_output=int,  # tokens, forecast
    done_head=int,  # finished and not yet collected, in order of finishing
    done_tail=int,
    sure_steps=int,  # coming iterations known to do nothing but decode; 0 = not worked out
    below=(SHORT, BLOCK_TOKENS + 1),  # [k]: decoding requests with r < k, where iterations -r (mod 16) take a new block for them
    heap=(SHORT, SLOTS),  # decoding requests, the first to finish first
    finish=(int, SLOTS),  # [place]: finish iteration << ORDER_BITS | admission number, of the request at that place of the heap
)

REQUEST = layout(
    prompt_tokens=SHORT,
    output_tokens=SHORT,  # truth; no forecast may read it
    forecast_tokens=SHORT,  # what a node believes output_tokens to be
    generated=SHORT,  # output tokens made before the last admission
    prefill_left=SHORT,  # tokens of prompt (and of answer, after preemption) still to compute
    context=SHORT,  # tokens in the KV cache when decoding began
    joined=SHORT,  # iteration after which decoding began
    order=SHORT,  # admission number
    next=SHORT,  # link in whichever queue the request stands in
    preemptions=SHORT,
    first_token_s=float,  # NEVER until known
    finish_s=float,  # NEVER until known
)


@rule
def blocks_for(tokens):
    """KV blocks that hold `tokens` tokens."""
    return (tokens + BLOCK_TOKENS - 1) >> BLOCK_SHIFT


@rule
def open_engine(engine, now):
    """Empty an engine, in place; its clock starts at `now` (s)."""
    engine.clock_s = now
    engine.iteration = 0
    engine.admissions = 0
    engine.running = 0
    engine.kv_tokens = 0
    engine.blocks_used = 0
    engine.due_tokens = 0
    engine.partial = NONE
    engine.waiting = 0
    engine.waiting_head = NONE
    engine.waiting_tail = NONE
    engine.waiting_prompt = 0
    engine.waiting_output = 0
    engine.done_head = NONE
    engine.done_tail = NONE
    engine.sure_steps = 0
    for k in range(BLOCK_TOKENS + 1):
        engine.below[k] = 0


@rule
def still_forecast(request):
    """Output tokens that a waiting request is believed to need still, at least one."""
    return max(request.forecast_tokens - request.generated, 1)


@rule
def _set_place(engine, place, index, finish):
    """Put a decoding request and its finish at one place of the heap."""
    engine.heap[place] = index
    engine.finish[place] = finish


@rule
def _sift_up(engine, place):
    finish = engine.finish
    index = engine.heap[place]
    mine = finish[place]
    while place > 0:
        parent = (place - 1) >> 1
        if mine >= finish[parent]:
            break
        _set_place(engine, place, engine.heap[parent], finish[parent])
        place = parent
    _set_place(engine, place, index, mine)


@rule
def _sift_down(engine, place):
    finish = engine.finish
    size = engine.running
    index = engine.heap[place]
    mine = finish[place]
    while True:
        child = 2 * place + 1
        if child >= size:
            break
        if child + 1 < size and finish[child + 1] < finish[child]:
            child += 1
        if finish[child] >= mine:
            break
        _set_place(engine, place, engine.heap[child], finish[child])
        place = child
    _set_place(engine, place, index, mine)


@rule
def first_finish(engine):
    """The iteration that finishes a request next; some request must be decoding."""
    return engine.finish[0] >> ORDER_BITS


@rule
def _count_below(engine, request, change):
    """Count a request in (`change` 1) or out (-1) of `engine.below`."""
    below = engine.below
    for k in range(((request.context - request.joined) & (BLOCK_TOKENS - 1)) + 1, BLOCK_TOKENS + 1):
        below[k] += change


@rule
def blocks_taken(engine, steps):
    """New blocks that the next `steps` iterations take in all, if they only decode.

    method   16 iterations in a row take one block a request; the rest are counted as a difference of two sums
    """
    last = -engine.iteration & (BLOCK_TOKENS - 1)
    first = last - (steps & (BLOCK_TOKENS - 1))
    whole = steps >> BLOCK_SHIFT
    if first < -1:
        whole += 1
        first += BLOCK_TOKENS
    return whole * engine.running + engine.below[last + 1] - engine.below[first + 1]


@rule
def _leave(engine, requests, place):
    """Take the decoding request at heap `place` out of the batch and free its blocks; returns its generated tokens."""
    index = engine.heap[place]
    request = requests[index]
    steps = engine.iteration - request.joined
    context = request.context + steps
    generated = request.generated + 1 + steps
    engine.kv_tokens -= context
    engine.blocks_used -= blocks_for(context)
    engine.due_tokens -= request.forecast_tokens - generated
    _count_below(engine, request, -1)
    engine.running -= 1
    if place < engine.running:
        _set_place(engine, place, engine.heap[engine.running], engine.finish[engine.running])
        _sift_down(engine, place)
        _sift_up(engine, place)
    return generated


@rule
def _finish(engine, requests, index):
    """Append a request to the finished ones, at the engine's clock."""
    request = requests[index]
    request.finish_s = engine.clock_s
    request.next = NONE
    if engine.done_head == NONE:
        engine.done_head = index
    else:
        requests[engine.done_tail].next = index
    engine.done_tail = index


@rule
def finish_due(engine, requests):
    """Finish every decoding request whose last token came with the iteration just committed."""
    while engine.running > 0 and first_finish(engine) <= engine.iteration:
        index = engine.heap[0]
        requests[index].generated = _leave(engine, requests, 0)
        _finish(engine, requests, index)


@rule
def join(engine, requests, index, context):
    """Begin to decode a request whose prefill ended with the iteration just committed: its first token is out."""
    request = requests[index]
    request.context = context
    request.joined = engine.iteration
    last = engine.iteration + request.output_tokens - request.generated - 1
    if request.generated == 0:
        request.first_token_s = engine.clock_s
    request.next = NONE
    _set_place(engine, engine.running, index, (last << ORDER_BITS) | request.order)
    engine.running += 1
    engine.kv_tokens += context
    engine.due_tokens += request.forecast_tokens - request.generated - 1
    _count_below(engine, request, 1)
    _sift_up(engine, engine.running - 1)


@rule
def _requeue(engine, requests, index, generated):
    """Put a preempted request back at the head of the waiting ones: all its tokens are computed again."""
    request = requests[index]
    request.generated = generated
    request.prefill_left = request.prompt_tokens + generated
    request.preemptions += 1
    request.next = engine.waiting_head
    if engine.waiting == 0:
        engine.waiting_tail = index
    engine.waiting_head = index
    engine.waiting += 1
    engine.waiting_prompt += request.prefill_left
    engine.waiting_output += still_forecast(request)


@rule
def preempt_last(engine, requests):
    """Preempt the request admitted last; a prefill under way is always the last."""
    if engine.partial != NONE:
        index = engine.partial
        request = requests[index]
        engine.partial = NONE
        engine.blocks_used -= blocks_for(request.prompt_tokens + request.generated)
        _requeue(engine, requests, index, request.generated)
        return
    last = 0
    for place in range(1, engine.running):
        if engine.finish[place] & _ORDER > engine.finish[last] & _ORDER:
            last = place
    index = engine.heap[last]
    _requeue(engine, requests, index, _leave(engine, requests, last))


@rule
def _unqueue(engine, requests, index):
    """Take a request out of the waiting ones."""
    before = NONE
    at = engine.waiting_head
    while at != index:
        before = at
        at = requests[at].next
    request = requests[index]
    if before == NONE:
        engine.waiting_head = request.next
    else:
        requests[before].next = request.next
    if engine.waiting_tail == index:
        engine.waiting_tail = before
    engine.waiting -= 1
    engine.waiting_prompt -= request.prefill_left
    engine.waiting_output -= still_forecast(request)
    request.next = NONE


@rule
def abort(engine, requests, index):
    """Take request `index` out of the engine, wherever it stands, and free its blocks; it will never finish.

    The engine must have been advanced to now: the iteration under way still counts the request, the next one does not.

    returns  False, and nothing changed, when it has finished: it is collected as ever
    """
    request = requests[index]
    if request.finish_s != NEVER:
        return False
    if index == engine.partial:
        engine.partial = NONE
        engine.blocks_used -= blocks_for(request.prompt_tokens + request.generated)
    elif request.prefill_left > 0:
        _unqueue(engine, requests, index)
    else:
        place = 0
        while engine.heap[place] != index:
            place += 1
        request.generated = _leave(engine, requests, place)
    engine.sure_steps = 0
    return True
