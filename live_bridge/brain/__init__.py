"""One provider's mind: events in, commands out. No clock, socket, file or chance of its own, so that a journal can be replayed.

Events and commands are lists that begin with their name, fit for a line of JSON; times are market seconds.
"""

from live_bridge.brain.brain import Brain, Setup
from live_bridge.brain.work import COPY, GUEST, JUDGE, USER, Work

__all__ = ["COPY", "GUEST", "JUDGE", "USER", "Brain", "Setup", "Work"]
