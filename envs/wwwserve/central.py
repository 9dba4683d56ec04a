"""Central schedulers: they read the truth of all providers at once, and are bounds to compare with, not agents."""

from envs.wwwserve.messages import ASSIGN
from envs.wwwserve.pool import delay_s, send
from envs.wwwserve.serve import put
from envs.wwwserve.state import PAPER_CENTRAL, REMOTE
from market import gossip, provider, serving
from market.rule import rule


@rule
def _paper_choice(w, n, p, now):
    """Keep a request at home below the target use, else send it where use, then the batch, is least.

    source   simu_centralized.py of the released code: fresh metrics before every request, no queue at the centre
    """
    first = n * w.setting[0].providers
    best = p
    best_use = 2.0
    best_load = 0
    for q in range(w.setting[0].providers):
        if w.node[first + q].online == 0:
            continue
        engine = w.engine[first + q]
        serving.advance(engine, w.profile[first + q], w.request, now)
        use = serving.usage(engine, w.profile[first + q])
        load = engine.running + engine.waiting + w.node[first + q].queued
        if q == p and use < w.terms[0].central_usage_target:
            return p
        if use < best_use or (use == best_use and load < best_load):
            best = q
            best_use = use
            best_load = load
    return best


@rule
def _aware_choice(w, n, p, r, now):
    """Send a request where its forecast completion, network delay included, is soonest."""
    first = n * w.setting[0].providers
    request = w.request[r]
    best = p
    best_s = float("inf")
    for q in range(w.setting[0].providers):
        if w.node[first + q].online == 0:
            continue
        engine = w.engine[first + q]
        serving.advance(engine, w.profile[first + q], w.request, now)
        done_s = 2.0 * delay_s(w, n, p, q) + provider.forecast_here(
            w.node[first + q], engine, w.profile[first + q], request.prompt_tokens, request.forecast_tokens
        )
        if done_s < best_s:
            best = q
            best_s = done_s
    return best


@rule
def schedule(w, n, p, r, now):
    """Place request r of provider p by the central scheduler in force."""
    setting = w.setting[0]
    q = _paper_choice(w, n, p, now) if setting.dispatch == PAPER_CENTRAL else _aware_choice(w, n, p, r, now)
    if q == p:
        put(w, n, p, r, now, 1)
        return
    first = n * setting.providers
    request = w.request[r]
    request.state = REMOTE
    request.executor = q
    request.incarnation = w.row[(first + q) * setting.providers + q].version // gossip.INCARNATION
    w.node[first + q].guests += 1
    w.node[first + p].away += 1
    send(w, n, now + delay_s(w, n, p, q), ASSIGN, r, q)
