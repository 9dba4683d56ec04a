"""The rules are loaded before any test is: live_bridge, which wants them plain, leaves a process alone that has chosen."""

import market.rule  # noqa: F401
