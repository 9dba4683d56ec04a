"""Shows one network of a batch: as text, live in a terminal, or as a picture for a video. Reads the truth; decides nothing."""

import io
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from envs.wwwserve.batch import Batch
from envs.wwwserve.scene import Course, Scene

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

MODES = ("ansi", "human", "rgb_array")
FRAMES_PER_S = 10
TEXT_WIDTH = 80
MOST_NAMED = 3
"""Executors that a row names, those with most of the provider's work."""


class Renderer:
    """Draws one network.

    mode     "ansi": a table as text; "human": the same, live in the terminal; "rgb_array": (640, 960, 3) uint8
    errors   ValueError for another mode
    """

    def __init__(self, batch: Batch, mode: str, network: int = 0) -> None:
        if mode not in MODES:
            raise ValueError(f"render_mode must be one of {', '.join(MODES)} or None, got {mode!r}")
        self.mode = mode
        self._course = Course(batch, network)
        self._live: Live | None = None

    def restart(self) -> None:
        """Forget the episode before."""
        self._course.restart()

    def note(self) -> None:
        """Take in the step that has just passed."""
        self._course.note()

    def render(self) -> str | NDArray[np.uint8] | None:
        """Draw what there is now; None in mode human, which shows it."""
        scene = self._course.scene()
        if self.mode == "rgb_array":
            from envs.wwwserve.picture import draw

            return draw(scene)
        if self.mode == "ansi":
            return text(scene)
        self._show(table(scene))
        return None

    def _show(self, content: "Table") -> None:
        from rich.live import Live

        if self._live is None:
            self._live = Live(auto_refresh=False)
            self._live.start()
        self._live.update(content, refresh=True)

    def close(self) -> None:
        """Leave the terminal as it stands."""
        if self._live is not None:
            self._live.stop()
            self._live = None


def text(scene: Scene) -> str:
    """Write the table as plain text."""
    from rich.console import Console

    stream = io.StringIO()
    Console(file=stream, width=TEXT_WIDTH, color_system=None, force_terminal=False, legacy_windows=False).print(table(scene))
    return stream.getvalue()


def table(scene: Scene) -> "Table":
    """Make the table of a network, one row a provider; it fits a terminal of 80 columns."""
    from rich.table import Table

    met = "-" if np.isnan(scene.market_attainment) else f"{scene.market_attainment:.0%}"
    title = f"{scene.title}: {scene.now_s:g} of {scene.horizon_s:g} s, {met} of the latest requests attained"
    out = Table(title=title, title_justify="left", box=None, pad_edge=False)
    out.add_column("", no_wrap=True)
    for name in ("run", "wait", "guest", "away", "KV", "met", "credit", "stake", "held"):
        out.add_column(name, justify="right", no_wrap=True)
    out.add_column("gives to", no_wrap=True)
    for p in range(len(scene.online)):
        out.add_row(*_row(scene, p), style=None if scene.online[p] else "dim")
    return out


def _row(scene: Scene, p: int) -> list[str]:
    sums = scene.credits
    share = scene.attainment[p]
    load: list[Any] = [scene.running[p], scene.waiting[p], scene.guests[p], scene.away[p]]
    return [
        f"provider_{p}",
        *(str(value) for value in load),
        f"{scene.kv_usage[p]:.0%}",
        "-" if np.isnan(share) else f"{share:.0%}",
        f"{sums['credit'][p]:.1f}",
        f"{sums['stake'][p]:.1f}",
        f"{sums['escrow'][p] + sums['unbonding'][p]:.1f}",
        _executors(scene, p) if scene.online[p] else "offline",
    ]


def _executors(scene: Scene, p: int) -> str:
    """Name the providers that have most of this one's work."""
    others = [int(q) for q in np.argsort(-scene.flows[p], kind="stable") if scene.flows[p, q]]
    return " ".join(str(q) for q in others[:MOST_NAMED]) + (" .." if len(others) > MOST_NAMED else "")
