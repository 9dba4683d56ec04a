"""What a vLLM-V1 engine costs: waiting, running, prefill, decode, KV blocks -> first token and finish.

Truth in the simulator and in the emulated backend, forecast everywhere. Iterations that only decode are jumped over in
closed form; every other iteration is stepped. Knows nothing of markets, queues in front of the engine, or networks.
source   vLLM V1 scheduler: FCFS, running first, chunked prefill, 16-token blocks, recompute preemption of the last running
"""

import math

from market.decoding import (
    BLOCK_SHIFT,
    BLOCK_TOKENS,
    ENGINE,
    NEVER,
    NONE,
    PROFILE,
    REQUEST,
    SLOTS,
    blocks_for,
    blocks_taken,
    finish_due,
    first_finish,
    join,
    open_engine,
    preempt_last,
    still_forecast,
)
from market.rule import rule

__all__ = [
    "BLOCK_TOKENS",
    "ENGINE",
    "NEVER",
    "NONE",
    "PROFILE",
    "REQUEST",
    "SLOTS",
    "advance",
    "begin",
    "blocks_for",
    "collect",
    "decode_s",
    "enqueue",
    "forecast_after_s",
    "forecast_s",
    "forecast_wait_s",
    "is_idle",
    "iterate",
    "open_engine",
    "usage",
]


@rule
def enqueue(engine, requests, index, now):
    """Hand request `index` to the engine at `now` (s); the engine must have been advanced to `now`.

    requests   records with the fields of REQUEST; prompt + output must fit in the engine's KV blocks
    """
    request = requests[index]
    request.generated = 0
    request.prefill_left = request.prompt_tokens
    request.next = NONE
    request.preemptions = 0
    request.first_token_s = NEVER
    request.finish_s = NEVER
    engine.clock_s = max(engine.clock_s, now)
    if engine.waiting == 0:
        engine.waiting_head = index
    else:
        requests[engine.waiting_tail].next = index
    engine.waiting_tail = index
    engine.waiting += 1
    engine.waiting_prompt += request.prefill_left
    engine.waiting_output += still_forecast(request)
    engine.sure_steps = 0


@rule
def _admissible(engine, profile, requests):
    """Whether the request at the head of the waiting ones could be admitted by the next iteration."""
    if engine.waiting == 0 or engine.running >= profile.max_num_seqs:
        return False
    free = profile.kv_blocks - engine.blocks_used - blocks_taken(engine, 1)
    return blocks_for(requests[engine.waiting_head].prefill_left) <= free


@rule
def decode_s(profile, decodes, kv_tokens):
    """Duration (s) of an iteration that only decodes; `kv_tokens` counts the tokens it adds."""
    return max(profile.a_s, profile.a2_s + profile.b_s * decodes) + profile.c_s * decodes + profile.d_s * kv_tokens


@rule
def _stretch_s(first, growth, steps):
    """Duration (s) of `steps` iterations that only decode: the first takes `first`, each next 2 x `growth` more."""
    return steps * (first + growth * (steps - 1.0))


@rule
def _steps_before(first, growth, span):
    """How many decode iterations start before `span` (s) from now, and how long they take (s); span > 0.

    first, growth   as for `_stretch_s`
    method          the root of the quadratic, then corrected until it is the least count that is not shorter than `span`
    """
    linear = first - growth
    steps = int(2.0 * span / (linear + math.sqrt(linear * linear + 4.0 * growth * span))) + 1
    stretch = _stretch_s(first, growth, steps)
    while stretch < span:
        steps += 1
        stretch = _stretch_s(first, growth, steps)
    while steps > 1:
        shorter = _stretch_s(first, growth, steps - 1)
        if shorter < span:
            break
        steps -= 1
        stretch = shorter
    return steps, stretch


@rule
def _steps_to_change(engine, profile):
    """Decode iterations until one finishes a request or lacks KV blocks; 0 when the very next one lacks them."""
    steps = first_finish(engine) - engine.iteration
    free = profile.kv_blocks - engine.blocks_used
    if blocks_for(steps) * engine.running <= free:
        return steps
    fit = (free // engine.running) << BLOCK_SHIFT
    while fit < steps and blocks_taken(engine, fit + 1) <= free:
        fit += 1
    return min(fit, steps)


@rule
def _jump(engine, requests, steps, stretch_s):
    """Commit `steps` iterations that only decode, in `stretch_s`; none may lack blocks, only the last may finish requests."""
    engine.blocks_used += blocks_taken(engine, steps)
    engine.sure_steps -= steps
    engine.clock_s += stretch_s
    engine.iteration += steps
    tokens = engine.running * steps
    engine.kv_tokens += tokens
    engine.due_tokens -= tokens
    engine.executed_tokens += tokens
    if engine.sure_steps == 0:
        finish_due(engine, requests)


@rule
def _admit(engine, requests):
    """Take the head of the waiting ones as the prefill under way and reserve the blocks of its whole prompt."""
    index = engine.waiting_head
    request = requests[index]
    engine.waiting_head = request.next
    engine.waiting -= 1
    engine.waiting_prompt -= request.prefill_left
    engine.waiting_output -= still_forecast(request)
    engine.blocks_used += blocks_for(request.prefill_left)
    request.order = engine.admissions
    engine.admissions += 1
    engine.partial = index


@rule
def _iteration_s(profile, decodes, kv_tokens, prefill, attention):
    """Duration (s) of one iteration of any kind."""
    bound = max(profile.a_s, profile.a2_s + profile.b_s * (prefill + decodes))
    extra = profile.e_s if prefill > 0 else 0.0
    return bound + profile.c_s * decodes + profile.d_s * kv_tokens + profile.q_s * attention + extra


@rule
def iterate(engine, profile, requests):
    """Commit one iteration of any kind: decodes first, then the prefill under way, then admissions in order."""
    admitting = True
    while blocks_taken(engine, 1) > profile.kv_blocks - engine.blocks_used:
        preempt_last(engine, requests)
        admitting = False
    decodes = engine.running
    engine.blocks_used += blocks_taken(engine, 1)
    free = profile.kv_blocks - engine.blocks_used
    budget = profile.max_num_batched_tokens - decodes
    prefill = 0
    attention = 0.0
    joining = 0
    first_joining = NONE
    last_joining = NONE
    while budget > 0:
        if engine.partial == NONE:
            if not admitting or engine.waiting == 0 or decodes + joining >= profile.max_num_seqs:
                break
            needed = blocks_for(requests[engine.waiting_head].prefill_left)
            if needed > free:
                break
            free -= needed
            _admit(engine, requests)
        request = requests[engine.partial]
        chunk = min(request.prefill_left, budget)
        done = request.prompt_tokens + request.generated - request.prefill_left
        attention += chunk * (done + 0.5 * chunk)
        request.prefill_left -= chunk
        budget -= chunk
        prefill += chunk
        if request.prefill_left == 0:
            request.next = NONE
            if joining == 0:
                first_joining = engine.partial
            else:
                requests[last_joining].next = engine.partial
            last_joining = engine.partial
            joining += 1
            engine.partial = NONE
    assert prefill + decodes > 0, "a request does not fit in the engine's KV blocks"
    engine.kv_tokens += decodes
    engine.due_tokens -= decodes
    engine.executed_tokens += decodes + prefill
    engine.clock_s += _iteration_s(profile, decodes, engine.kv_tokens, prefill, attention)
    engine.iteration += 1
    finish_due(engine, requests)
    while first_joining != NONE:
        index = first_joining
        first_joining = requests[index].next
        join(engine, requests, index, requests[index].prompt_tokens + requests[index].generated)
    finish_due(engine, requests)


@rule
def _only_decodes(engine, profile, requests):
    """How many iterations from here on only decode, at least; 0 when the next one does anything else."""
    if engine.sure_steps == 0 and engine.running > 0 and engine.partial == NONE and not _admissible(engine, profile, requests):
        engine.sure_steps = _steps_to_change(engine, profile)
    return engine.sure_steps


@rule
def is_idle(engine):
    """Whether the engine has nothing to compute."""
    return engine.running == 0 and engine.partial == NONE and engine.waiting == 0


@rule
def advance(engine, profile, requests, until):
    """Commit every iteration that starts before `until` (s). What they finish is collected with `collect`."""
    if engine.clock_s < until and not is_idle(engine):
        _catch_up(engine, profile, requests, until)


@rule
def _catch_up(engine, profile, requests, until):
    """`advance` with something to do: small callers keep the question and call only this."""
    while engine.clock_s < until and not is_idle(engine):
        steps = _only_decodes(engine, profile, requests)
        if steps == 0:
            iterate(engine, profile, requests)
            continue
        first = decode_s(profile, engine.running, engine.kv_tokens + engine.running)
        growth = 0.5 * profile.d_s * engine.running
        stretch = _stretch_s(first, growth, steps)
        if engine.clock_s + stretch > until:
            fewer, shorter = _steps_before(first, growth, until - engine.clock_s)
            if fewer < steps:
                steps = fewer
                stretch = shorter
        _jump(engine, requests, steps, stretch)


@rule
def begin(engine, profile, requests, now):
    """Start what the engine does next at `now` (s), after `advance` to `now`; returns when to look again (s), or NEVER.

    An iteration that prefills is committed when it starts: nothing that arrives later can change it. A stretch that
    only decodes is left open, so that an arrival can cut it short.
    """
    if engine.done_head != NONE:
        return engine.clock_s
    if is_idle(engine):
        return NEVER
    steps = _only_decodes(engine, profile, requests)
    if steps > 0:
        first = decode_s(profile, engine.running, engine.kv_tokens + engine.running)
        return engine.clock_s + _stretch_s(first, 0.5 * profile.d_s * engine.running, steps)
    if engine.clock_s <= now:
        iterate(engine, profile, requests)
    return engine.clock_s


@rule
def collect(engine, requests, now):
    """Take the next request that finished at or before `now` (s) off the finished ones; NONE when there is none."""
    index = engine.done_head
    if index == NONE or requests[index].finish_s > now:
        return NONE
    engine.done_head = requests[index].next
    return index


@rule
def forecast_wait_s(profile, running, kv_tokens, due_tokens, ahead, ahead_prompt, ahead_output):
    """Forecast (s) how long a request handed in now waits for its first prefill.

    running, kv_tokens, due_tokens   decoding requests, their KV tokens, their forecast tokens to come
    ahead, ahead_prompt, ahead_output   requests queued before it and their forecast tokens
    method   places free one by one as requests end; with memoryless remainders every completion takes the mean
             remainder over the places. A request holds its prompt and, over its life, half of its answer
    """
    batch = running + ahead
    if batch == 0:
        return 0.0
    work = max(due_tokens, running) + ahead_output
    size = (kv_tokens + ahead_prompt + 0.5 * ahead_output) / batch
    capacity = float(BLOCK_TOKENS * profile.kv_blocks)
    places = max(min(float(profile.max_num_seqs), capacity / max(size, 1.0)), 1.0)
    prefill = profile.b_s * ahead_prompt
    if batch < places:
        return prefill
    step = decode_s(profile, places, min(places * size, capacity))
    return prefill + step * (work / batch) * (batch - places + 1.0) / places


@rule
def forecast_s(profile, running, kv_tokens, due_tokens, ahead, ahead_prompt, ahead_output, prompt, output):
    """Forecast (s) from now to the last token of a request with `prompt` tokens and a forecast of `output` tokens.

    The other arguments are those of `forecast_wait_s`. Exact for an empty engine and a prompt of one chunk; prefills of
    requests that come later are not foreseen.
    """
    wait_s = forecast_wait_s(profile, running, kv_tokens, due_tokens, ahead, ahead_prompt, ahead_output)
    return forecast_after_s(profile, wait_s, running, kv_tokens, ahead, ahead_prompt, ahead_output, prompt, output)


@rule
def forecast_after_s(profile, wait_s, running, kv_tokens, ahead, ahead_prompt, ahead_output, prompt, output):
    """`forecast_s` when `forecast_wait_s` (s) is known already: it is half of the work."""
    others = min(float(running + ahead), profile.max_num_seqs - 1.0)
    capacity = float(BLOCK_TOKENS * profile.kv_blocks)
    chunks = max(math.ceil(prompt / profile.max_num_batched_tokens), 1)
    attention = 0.5 * prompt * prompt / chunks
    prefill = chunks * _iteration_s(profile, others, min(float(kv_tokens), capacity), prompt / chunks, attention)
    held = min(kv_tokens + ahead_prompt + 0.5 * ahead_output + prompt + 0.5 * output, capacity)
    return wait_s + prefill + max(output - 1.0, 0.0) * decode_s(profile, others + 1.0, held) + profile.h_s


@rule
def usage(engine, profile):
    """Share of the KV blocks in use, in [0, 1] (vLLM's kv_cache_usage_perc)."""
    return engine.blocks_used / profile.kv_blocks
