"""The kinds of messages that travel between the providers of a network."""

OFFER = 0
"""A request on offer reaches a peer."""
DECLINED = 1
"""A peer's refusal reaches the origin."""
ACCEPTED = 2
"""A peer's acceptance reaches the origin."""
SILENCE = 3
"""An offer has gone unanswered for offer_timeout_s."""
RESULT = 4
"""An answer, or a judge's vote, reaches the origin."""
ASSIGN = 5
"""Work sent without an offer (to a judge, or by a central scheduler) reaches its executor."""
DUEL_END = 6
"""A duel has lasted duel_ttl_s."""
