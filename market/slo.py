"""When a request counts as attained: the whole answer within the service-level objective."""

from market.rule import rule


@rule
def attained(latency_s, slo_s):
    """Whether an answer that took `latency_s` from arrival to its last token met `slo_s`."""
    return latency_s <= slo_s


@rule
def due_in_window(arrival_s, slo_s, horizon_s):
    """Whether a request's deadline lies inside the window [0, horizon_s]: only then is its fate known for certain."""
    return arrival_s + slo_s <= horizon_s
