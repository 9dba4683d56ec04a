"""Draws a check as one picture: latencies in both worlds, wealth in both worlds, and every difference against its bound."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from live_bridge.compare import Comparison, Line
from live_bridge.episode import FINISHED, Course, Episode

INK, PALE = "#333333", "#dddddd"
NAMED = {"single": "#777777", "paper": "#0072B2"}
OTHERS = ("#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Colours of Okabe and Ito, which people with any colour vision tell apart; the same as in reports of evaluations."""
EDGE = 3.0
"""Bounds away from zero at which a difference is drawn at the edge."""
POINTS = 200

Plays = Mapping[str, Sequence[Course]]


def draw(episode: Episode, live: Plays, found: Sequence[Comparison], path: Path) -> None:
    """Write the picture as a PNG file.

    live     policy -> its live plays
    found    one comparison a policy
    """
    lines = max(len(_judged(comparison)) for comparison in found)
    figure = Figure(figsize=(16, max(5.0, 1.6 + 0.34 * lines)), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.15, 0.95, 1.2))
    colours = _colours([comparison.policy for comparison in found])
    _latency(left, episode, live, colours)
    _wealth(middle, episode, live, colours)
    _differences(right, found, colours)
    for axes in (left, middle, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(visible=True, color=PALE, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.title.set_color(INK)
        axes.tick_params(colors=INK, labelsize=9)
    title = f"{episode.scenario}, seed {episode.seed}: {len(episode.demand)} requests in the simulator and on real nodes"
    figure.suptitle(title, fontsize=13, color=INK)
    figure.savefig(path, format="png", metadata={"Software": None})


def _colours(policies: Sequence[str]) -> dict[str, str]:
    others = [name for name in policies if name not in NAMED]
    return {name: NAMED.get(name) or OTHERS[others.index(name) % len(OTHERS)] for name in policies}


def _latency(axes: Axes, episode: Episode, live: Plays, colours: Mapping[str, str]) -> None:
    """Share of requests answered within a time: a band for the simulator's replays, a line for each live play."""
    grid = np.linspace(0.0, _longest(episode, live), POINTS)
    for policy, courses in live.items():
        replays = np.array([_answered(course.rows, grid) for course in episode.played[policy]])
        low, high = np.percentile(replays, (2.5, 97.5), axis=0)
        axes.fill_between(grid, low, high, color=colours[policy], alpha=0.22, linewidth=0)
        axes.plot(grid, replays.mean(axis=0), color=colours[policy], linewidth=1.0)
        for course in courses:
            axes.plot(grid, _answered(course.rows, grid), color=colours[policy], linewidth=2.0, linestyle=(0, (2, 1)))
    slos = {place.slo_s for place in episode.places}
    if len(slos) == 1 and min(slos) < grid[-1]:
        axes.axvline(min(slos), color=INK, linewidth=0.8, linestyle=":")
        axes.annotate("SLO", (min(slos), 0.3), (3, 0), "data", textcoords="offset points", color=INK, fontsize=9)
    axes.set_title("Latency")
    axes.set_xlabel("arrival to last token (s)")
    axes.set_ylabel("share of requests answered")
    axes.set_xlim(0, grid[-1])
    axes.set_ylim(0, 1.02)
    worlds = [
        Line2D([], [], color=INK, linewidth=1.0, label="simulated, with 95 % of replays"),
        Line2D([], [], color=INK, linewidth=2.0, linestyle=(0, (2, 1)), label="live"),
    ]
    policies = [Line2D([], [], color=colours[policy], linewidth=5.0, label=policy) for policy in live]
    axes.legend(handles=[*policies, *worlds], loc="lower right", frameon=False, fontsize=9)


def _answered(rows: np.ndarray, grid: NDArray[np.float64]) -> NDArray[np.float64]:
    latency = np.sort(rows["latency_s"][rows["status"] == FINISHED])
    share: NDArray[np.float64] = np.searchsorted(latency, grid, side="right") / max(len(rows), 1)
    return share


def _longest(episode: Episode, live: Plays) -> float:
    """The 99.5th percentile of all latencies: one straggler does not squeeze the picture."""
    plays = [course.rows for policy in live for course in (*episode.played[policy], *live[policy])]
    known = np.concatenate([rows["latency_s"][rows["status"] == FINISHED] for rows in plays])
    return float(np.percentile(known, 99.5)) if len(known) else episode.horizon_s


def _wealth(axes: Axes, episode: Episode, live: Plays, colours: Mapping[str, str]) -> None:
    """What each provider owns at the end: a bar over the replays' range, and a dot for each live play."""
    width = 0.8 / len(live)
    for k, (policy, courses) in enumerate(live.items()):
        at = np.arange(len(episode.places)) - 0.4 + (k + 0.5) * width
        replays = np.array([course.wealth for course in episode.played[policy]])
        low, high = np.percentile(replays, (2.5, 97.5), axis=0)
        middle = replays.mean(axis=0)
        axes.bar(at, high - low, 0.7 * width, low, color=colours[policy], alpha=0.3, linewidth=0)
        axes.hlines(middle, at - 0.35 * width, at + 0.35 * width, color=colours[policy], linewidth=1.4)
        for course in courses:
            axes.plot(at, course.wealth, "D", color=colours[policy], markersize=6.5, markeredgecolor="white", markeredgewidth=1.0)
    axes.set_title("Credit and stake at the end")
    axes.set_xlabel("provider")
    axes.set_ylabel("credits (bar: 95 % of replays; diamond: live)")
    axes.set_xticks(range(len(episode.places)))
    axes.set_ylim(bottom=0)


def _judged(comparison: Comparison) -> list[Line]:
    """What can be drawn against a bound."""
    return [line for line in comparison.lines if line.bound is not None and line.bound > 0.0]


def _differences(axes: Axes, found: Sequence[Comparison], colours: Mapping[str, str]) -> None:
    """Every difference in units of its bound, with luck as a whisker; beyond the grey field it has to be explained by luck."""
    names = list(dict.fromkeys(line.metric for comparison in found for line in _judged(comparison)))
    axes.axvspan(-1.0, 1.0, color="#009E73", alpha=0.08, linewidth=0)
    axes.axvline(0.0, color=INK, linewidth=0.8)
    for k, comparison in enumerate(found):
        shift = 0.6 * ((k + 0.5) / len(found) - 0.5)
        for line in _judged(comparison):
            assert line.bound is not None
            at, luck = names.index(line.metric) + shift, line.luck / line.bound
            place = float(np.clip(line.difference / line.bound, -EDGE, EDGE))
            style: dict[str, Any] = {"color": colours[comparison.policy]}
            low, high = np.clip([place - luck, place + luck], -EDGE, EDGE)
            axes.hlines(at, low, high, linewidth=1.4, alpha=0.6, **style)
            missed = line.verdict == "missed"
            axes.plot(place, at, "X" if missed else "o", markersize=11 if missed else 6.5, markeredgecolor="white", **style)
    axes.set_title("Live less simulated, in bounds")
    axes.set_xlabel("difference / bound (whisker: luck; cross: missed)")
    axes.set_xlim(-EDGE - 0.1, EDGE + 0.1)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
