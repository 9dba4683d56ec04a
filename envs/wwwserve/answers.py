"""The fate of users' requests: answered, missed, failed; each is counted once and leaves one row in the record."""

from envs.wwwserve.pool import add_due, drop_due, free_slot
from envs.wwwserve.state import NONE
from market.rule import rule
from market.slo import attained


@rule
def open_request(w, n, p, r, now):
    """Begin the life of an own request of provider p: its deadline runs from here, and the record gets its row."""
    setting = w.setting[0]
    g = n * setting.providers + p
    net = w.net[n]
    request = w.request[r]
    slo_s = w.node[g].slo_s
    request.arrival_s = now
    request.deadline_s = now + slo_s
    request.answered = 0
    request.missed = 0
    request.log_row = NONE
    add_due(w, g, r)
    net.arrived += 1
    if net.logged < setting.log:
        request.log_row = n * setting.log + net.logged
        net.logged += 1
        _write_row(w.log[request.log_row], n, p, request, slo_s)


@rule
def _write_row(row, n, p, request, slo_s):
    row.network = n
    row.origin = p
    row.executor = p
    row.arrival_s = request.arrival_s
    row.prompt_tokens = request.prompt_tokens
    row.output_tokens = request.output_tokens
    row.forecast_tokens = request.forecast_tokens
    row.latency_s = float("inf")
    row.ttft_s = float("inf")
    row.slo_s = slo_s
    row.status = 0
    row.delegated = 0


@rule
def miss(w, g, request):
    """Count a request of provider g (absolute) as missed, once."""
    if request.missed == 0:
        request.missed = 1
        w.driver[g].missed += 1


@rule
def _close_due(w, g, r):
    """Take an own request of provider g (absolute) off the deadlines that are still to come."""
    if w.request[r].missed == 0:
        drop_due(w, g, r)


@rule
def answer(w, n, r, executor, answered_s, first_token_s):
    """Give a user the answer: the first one counts, a second one changes nothing."""
    request = w.request[r]
    if request.answered == 1:
        return
    request.answered = 1
    g = n * w.setting[0].providers + request.origin
    latency = answered_s - request.arrival_s
    _close_due(w, g, r)
    if attained(latency, w.node[g].slo_s):
        w.driver[g].attained += 1
    else:
        miss(w, g, request)
    w.net[n].answered += 1
    if request.log_row != NONE:
        row = w.log[request.log_row]
        row.executor = executor
        row.latency_s = latency
        row.ttft_s = first_token_s - request.arrival_s
        row.status = 1
        row.delegated = 1 if executor != request.origin else 0


@rule
def fail(w, n, r):
    """Tell a user that there will be no answer, unless there was one; the slot is the caller's to free."""
    request = w.request[r]
    if request.answered == 1:
        return
    request.answered = 1
    g = n * w.setting[0].providers + request.origin
    _close_due(w, g, r)
    miss(w, g, request)
    w.net[n].failed += 1
    if request.log_row != NONE:
        w.log[request.log_row].status = 2


@rule
def fail_and_free(w, n, r):
    """End a user's request without an answer and give its slot back."""
    fail(w, n, r)
    free_slot(w, n, r)


@rule
def count_due(w, g, now):
    """Count every own request of provider g (absolute) whose deadline has passed as a miss, at its deadline."""
    driver = w.driver[g]
    while driver.due_s <= now:
        r = driver.due_head
        drop_due(w, g, r)
        miss(w, g, w.request[r])
