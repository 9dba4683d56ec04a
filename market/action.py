"""What an agent decides, and the participation policy (intent) that a provider posts because of it.

Levels are ratios to a request's remaining SLO time, so that they carry over between slow and fast hardware.
"""

from market.rule import layout, rule

ACTION_VERSION = 1
ACTION_NAMES = ("accept", "forward", "commit")
NO_LIMIT = 1e9
ACCEPT_LEVELS = (-1.0, 0.5, 0.8, 1.0, NO_LIMIT)
"""Take delegated work whose forecast completion here is within this share of its remaining SLO time (-1 = refuse)."""
FORWARD_LEVELS = (NO_LIMIT, 1.2, 0.8, 0.5, 0.0)
"""Offer own work whose forecast completion here exceeds this share of its remaining SLO time (0 = always)."""
COMMIT_LEVELS = (0.0, 0.05, 0.10, 0.25, 0.50)
"""Move stake towards this share of own wealth."""
LEVELS = 5
ACTION_NVEC = (LEVELS, LEVELS, LEVELS)
MASK_SIZE = sum(ACTION_NVEC)
IDLE = (0, 0, 0)
"""Refuse, never forward, no stake: the only action of a provider that is offline."""

INTENT_FIELDS = dict(
    accept_ceiling=float,  # accept when forecast completion <= this x remaining SLO time
    forward_ceiling=float,  # offer when forecast completion > this x remaining SLO time
    stake_share=float,  # stake target as a share of wealth; < 0: use stake_target_micro
    stake_target_micro=int,
    usage_target=float,  # offer when KV use >= this
    accept_usage=float,  # accept only when KV use < this
    accept_queue=int,  # accept only when own queue is no longer than this
    p_offload=float,  # chance to offer when the rules above say so
    p_accept=float,  # chance to accept when the rules above say so
    p_queue=float,  # chance to place at home what was not offered; else it is held and looked at again
)
INTENT = layout(**INTENT_FIELDS)
_ANY_QUEUE = 1 << 40


@rule
def intent_of_action(intent, accept, forward, commit):
    """Write the intent that three action levels stand for, in place.

    intent                    a record with the fields of INTENT
    accept, forward, commit   levels in [0, 5)
    """
    intent.accept_ceiling = ACCEPT_LEVELS[accept]
    intent.forward_ceiling = FORWARD_LEVELS[forward]
    intent.stake_share = COMMIT_LEVELS[commit]
    intent.stake_target_micro = 0
    intent.usage_target = NO_LIMIT
    intent.accept_usage = NO_LIMIT
    intent.accept_queue = _ANY_QUEUE
    intent.p_offload = 1.0
    intent.p_accept = 1.0
    intent.p_queue = 1.0


@rule
def intent_of_paper(intent, terms, usage, engine_waiting, queued):
    """Write the intent of WWW.Serve's released rules, in place: thresholds, frequencies and automatic stake.

    usage            share of KV blocks in use
    engine_waiting   requests waiting inside the engine
    queued           requests in the provider's own queue
    source           www_serve/core_node.py and credit_ledger.py of the released code: stake is 4/3/2/1 credits at <= 25/50/75/100 %
                     of the target use, 0 above it or with a waiting engine, less 2 with an own queue, never below 0
    """
    score = 0
    target = terms.paper_usage_target
    if engine_waiting == 0 and usage <= target:
        score = 4
        if usage > 0.25 * target:
            score -= 1
        if usage > 0.50 * target:
            score -= 1
        if usage > 0.75 * target:
            score -= 1
    if queued > 0:
        score = max(score - 2, 0)
    intent.accept_ceiling = NO_LIMIT
    intent.forward_ceiling = NO_LIMIT
    intent.stake_share = -1.0
    intent.stake_target_micro = score * 1_000_000
    intent.usage_target = target
    intent.accept_usage = target
    intent.accept_queue = 0
    intent.p_offload = terms.paper_offload
    intent.p_accept = terms.paper_accept
    intent.p_queue = terms.paper_queue


@rule
def write_mask(mask, offset, online, credit_micro, price_micro):
    """Write the 15 entries of an action mask at `offset`: 1 = possible.

    An offline provider may only idle; one without credit for a request cannot forward.
    """
    for k in range(MASK_SIZE):
        mask[offset + k] = online
    mask[offset] = 1
    mask[offset + LEVELS] = 1
    mask[offset + 2 * LEVELS] = 1
    if credit_micro < price_micro:
        for k in range(LEVELS + 1, 2 * LEVELS):
            mask[offset + k] = 0
