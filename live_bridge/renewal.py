"""Policy and settings read again while a node runs (SIGHUP): what is bad is refused as a whole, and the old stays in force."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING

from agents.card import PolicyError
from live_bridge.config import NodeSettings, leaves
from live_bridge.log import LEVELS
from live_bridge.peers.users import UsersError
from live_bridge.trial import Trials
from settings import SettingsError

if TYPE_CHECKING:
    from live_bridge.node import Node

LOG = logging.getLogger(__name__)
AT_ONCE = ("policy", "duels.judge", "log.level")
"""Settings that are in force as soon as they are read again; and the content of users.keys_file."""


class Renewal:
    """Reads again as often as it is told to; while one reading is under way, all further calls are one more."""

    def __init__(self, node: "Node", again: Callable[[], NodeSettings]) -> None:
        """Take what reads the settings."""
        self._node, self._again = node, again
        self._trials = Trials()
        self._called = asyncio.Event()

    def call(self) -> None:
        """Have it read again soon."""
        self._called.set()

    async def run(self) -> None:
        """Read whenever called, until cancelled."""
        while True:
            await self._called.wait()
            self._called.clear()
            await self._renew()

    async def _renew(self) -> None:
        node = self._node
        try:
            fresh = await asyncio.to_thread(self._again)
            await self._trials.try_out(fresh.policy)
            policy = await asyncio.to_thread(node.pilot.read, fresh.policy)
            if node.users is not None:
                node.users.reload()
        except (SettingsError, PolicyError, UsersError, OSError) as error:
            node.metrics.reload("refused")
            node.recent.event(f"not reloaded: {error}")
            LOG.warning("not reloaded", extra={"reason": str(error)})
            return
        node.pilot.take(policy)
        node.bench.willing = fresh.duels.judge
        logging.getLogger("live_bridge").setLevel(LEVELS[fresh.log.level])
        waiting = later(node.settings, fresh)
        node.metrics.reload("done")
        node.named()
        node.recent.event(f"reloaded: policy {node.pilot.name}" + (f"; only a new start changes {waiting}" if waiting else ""))
        LOG.info("reloaded", extra={"policy": node.pilot.name, "needs_new_start": waiting})


def later(now: NodeSettings, fresh: NodeSettings) -> str:
    """Name the settings that have changed and cannot while the node runs."""
    old, new = (dict(leaves(asdict(settings))) for settings in (now, fresh))
    return ", ".join(key for key, value in new.items() if value != old[key] and key not in AT_ONCE)
