"""Rosters: what one provider believes about all, spread by exchange of versioned rows; who is alive, suspect, gone."""

from market.rule import SHORT, layout, rule

ALIVE = 0
SUSPECT = 1
GONE = 2
NONE = -1

ROW = layout(
    version=int,  # grows with every beat of its subject; an incarnation is a jump (see `beat`)
    changed_s=float,  # when the observer last heard something newer, or began to suspect
    posted_s=float,  # when the subject wrote this row, on its own clock of seconds since the start
    wait_s=float,  # forecast wait there
    usage=float,  # share of its KV blocks in use
    accepts=float,  # 1 when its posted intent takes delegated work at all, else 0
    status=SHORT,  # ALIVE, SUSPECT, GONE: the observer's own belief
    duels_won=SHORT,
    duels_lost=SHORT,
)
INCARNATION = 1 << 32
"""Version step of a restart: a provider that comes back outranks every row of its former life."""


@rule
def copy_row(target, source):
    """Copy what the subject posted; the observer's own belief is left alone."""
    target.version = source.version
    target.posted_s = source.posted_s
    target.wait_s = source.wait_s
    target.usage = source.usage
    target.accepts = source.accepts
    target.duels_won = source.duels_won
    target.duels_lost = source.duels_lost


@rule
def merge(target, source, now):
    """Take a peer's row into one's own roster when it is newer; only newer news proves life.

    target   own row about some subject, changed in place
    source   the peer's row about the same subject
    now      s, own clock
    """
    if source.version > target.version:
        copy_row(target, source)
        target.status = ALIVE
        target.changed_s = now


@rule
def suspect(row, now):
    """Note that a peer did not answer."""
    if row.status == ALIVE:
        row.status = SUSPECT
        row.changed_s = now


@rule
def age(row, now, suspect_s, gone_s):
    """Let silence have its effect; returns True when the subject is declared gone by this call.

    suspect_s   silence after which an alive peer is suspect
    gone_s      suspicion after which it is gone
    """
    if row.status == ALIVE and now - row.changed_s > suspect_s:
        row.status = SUSPECT
        row.changed_s = now
    elif row.status == SUSPECT and now - row.changed_s > gone_s:
        row.status = GONE
        row.changed_s = now
        return True
    return False


@rule
def partner(rows, first_row, providers, self_index, u):
    """Choose a gossip partner at random among the peers that are not gone; when none is left, among all peers.

    A suspect is still asked: it may answer, and one that all believe gone is found again by its own beats.
    returns   peer index, NONE when there is no peer at all
    """
    open_peers = 0
    for peer in range(providers):
        if peer != self_index and rows[first_row + peer].status != GONE:
            open_peers += 1
    if open_peers == 0:
        open_peers = providers - 1
    if open_peers == 0:
        return NONE
    place = min(int(u * open_peers), open_peers - 1)
    if open_peers == providers - 1:
        return place + 1 if place >= self_index else place
    for peer in range(providers):
        if peer != self_index and rows[first_row + peer].status != GONE:
            if place == 0:
                return peer
            place -= 1
    return NONE
