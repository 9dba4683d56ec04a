"""The live page: a node's market as a picture, one file of HTML fed by server-sent events."""

from live_bridge.view.feed import EVENTS_PATH, PAGE_PATH, Feed
from live_bridge.view.recent import Recent
from live_bridge.view.snapshot import Me, NodeView, Snapshot, Totals
from live_bridge.view.words import why

__all__ = ["EVENTS_PATH", "PAGE_PATH", "Feed", "Me", "NodeView", "Recent", "Snapshot", "Totals", "why"]
