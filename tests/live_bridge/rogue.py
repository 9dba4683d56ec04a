"""A node that cheats when a request asks it to: `python -m tests.live_bridge.rogue serve --config FILE`. All else is real."""

import json
import sys

from live_bridge import cli, host

TIMES = 10


class Rogue(host.FrameSink):
    """An executor's answer; `cheat` in the body of the request says what is wrong with it."""

    def _cheats(self, how: str) -> bool:
        return bool(json.loads(self._job.body).get("cheat") == how)

    async def end(self) -> None:
        """End without a receipt, by hanging up, or by signing for ten times the tokens."""
        if self._cheats("signs nothing"):
            self._response.end()
        elif self._cheats("hangs up"):
            self._response.abort()
        elif self._cheats("claims more"):
            await self._response.write(self._encoder.end(self._job.tokens * TIMES))
            self._response.end()
        else:
            await super().end()

    async def cut(self, code: str, tokens: int) -> None:
        """Say that ten times the tokens were delivered before the engine failed."""
        await super().cut(code, tokens * (TIMES if self._cheats("claims more") else 1))


if __name__ == "__main__":
    host.FrameSink = Rogue  # type: ignore[misc]
    sys.exit(cli.main())
