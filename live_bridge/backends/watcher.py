"""Watch an engine: read its load every period, know how old the news is, and see at once that it is gone or back."""

import asyncio
import math
from collections.abc import Callable

from live_bridge.backends.metrics import BadMetricError, Kind, Load, MissingMetricError, read
from live_bridge.clock import Clock
from live_bridge.http.message import ConnectFailed, Count, Headers, HttpClient

ANSWER_BYTES = 16 * 2**20
"""Longest exposition that is read."""


class Watcher:
    """The latest load of the engine at one URL, and whether anything answers there."""

    def __init__(
        self,
        client: HttpClient,
        url: str,
        kind: Kind,
        clock: Clock,
        period_s: float,
        stale_s: float,
        headers: Headers,
        count: Count,
    ) -> None:
        """Know where to look; nothing is read before `run` or `poll`.

        url       of the engine, without a path
        kind      openai: an engine without metrics of a known name; it is only asked whether it is there
        period_s  market s between readings
        stale_s   market s after which a reading is no longer believed
        headers   sent along, such as the engine's own key
        count     told backend_poll_ok, _unreachable, _timeout, _status, _missing or _bad at each reading, and
                  _silent when /health does not answer either
        """
        root = url.rstrip("/")
        self.url = root + ("/v1/models" if kind == "openai" else "/metrics")
        self._health = None if kind == "openai" else f"{root}/health"
        self.error: str | None = None
        self._client, self._kind, self._clock = client, kind, clock
        self._period_s, self._stale_s = period_s, stale_s
        self._headers, self._count = headers, count
        self._load: Load | None = None
        self._heard_s = -math.inf
        self._refused = False
        self._wake = asyncio.Event()
        self.turned: Callable[[], None] = lambda: None
        """Hears at once that nobody is there any more."""

    def load(self) -> Load | None:
        """The latest reading; None when it is too old, or there never was one: then count own work in flight."""
        if self._load is None or self.age_s > self._stale_s or not self.alive:
            return None
        return self._load

    @property
    def age_s(self) -> float:
        """Market s since the latest reading of the load; infinite before the first."""
        return math.inf if self._load is None else self._clock.now() - self._load.read_s

    @property
    def alive(self) -> bool:
        """Whether the engine answers, readable metrics or not."""
        return not self._refused and self._clock.now() - self._heard_s <= self._stale_s

    def wake(self) -> None:
        """Look now rather than at the end of the period: a request has just failed."""
        self._wake.set()

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            self._wake.clear()
            await self.poll()
            try:
                async with asyncio.timeout(self._clock.wall_s(self._period_s)):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def poll(self) -> None:
        """Read once. Whatever goes wrong is counted and kept in `error`; an older reading stays until it is stale.

        Where the metrics hang or fail, the engine is asked whether it is well all the same: that they do not tell is no reason
        to call it down.
        """
        asked_s = self._clock.now()
        try:
            status, body = await self._ask(self.url)
            self._refused = False
            if status < 500:
                self._heard_s = asked_s
            else:
                await self._ask_health()
            self._note(status, body, asked_s)
        except ConnectFailed as error:
            self._failed("unreachable", str(error))
            self._gone()
        except TimeoutError:
            self._failed("timeout", f"{self.url}: no answer within {self._patience_s:g} s")
            await self._ask_health()
        except MissingMetricError as error:
            self._failed("missing", str(error))
        except BadMetricError as error:
            self._failed("bad", str(error))
        except OSError as error:
            self._failed("unreachable", str(error))
            await self._ask_health()

    @property
    def _patience_s(self) -> float:
        """Market s that one question may take: two of them, one after the other, are answered before old news is stale."""
        return self._stale_s if self._health is None else max((self._stale_s - self._period_s) / 2.0, self._stale_s / 4.0)

    async def _ask(self, url: str) -> tuple[int, bytes]:
        patience_s = self._clock.wall_s(self._patience_s)
        connect_s = min(patience_s, self._clock.wall_s(2 * self._period_s))
        async with asyncio.timeout(patience_s):
            with await self._client.request("GET", url, self._headers, connect_s=connect_s, first_byte_s=patience_s) as reply:
                return reply.status, await reply.body(ANSWER_BYTES)

    async def _ask_health(self) -> None:
        """Hear of the engine by another way than its metrics; silence is no news."""
        if self._health is None:
            return
        asked_s = self._clock.now()
        try:
            status, _ = await self._ask(self._health)
        except ConnectFailed:
            self._gone()
        except OSError:
            self._count("backend_poll_silent")
        else:
            self._refused = False
            if status == 200:
                self._heard_s = asked_s

    def _gone(self) -> None:
        if not self._refused:
            self._refused = True
            self.turned()

    def _note(self, status: int, body: bytes, asked_s: float) -> None:
        """Take an answer; the reading is as old as the question."""
        if self._kind == "openai":
            if status >= 500:
                self._failed("status", f"{self.url}: answers {status}")
                return
        elif status != 200:
            self._failed("status", f"{self.url}: answers {status}, must answer 200; does the engine export metrics?")
            return
        else:
            self._load = read(body.decode(errors="replace"), self._kind, self.url, asked_s)
        self.error = None
        self._count("backend_poll_ok")

    def _failed(self, reason: str, text: str) -> None:
        self.error = text
        self._count(f"backend_poll_{reason}")
