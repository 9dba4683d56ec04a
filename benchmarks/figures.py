"""The pictures of docs/results.md, drawn from benchmarks/results and nothing else."""

import io
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from agents.metrics import TIME_BINS
from agents.publish import write_whole
from agents.report import BLUE, GREEN, INK, ORANGE, RED, STYLES
from benchmarks import results
from benchmarks.proof.summary import OVERALL
from envs.wwwserve import traces
from market.action import ACCEPT_LEVELS, COMMIT_LEVELS, FORWARD_LEVELS, LEVELS, NO_LIMIT

SHADES = (BLUE, GREEN, ORANGE, RED)
LEARNED_STYLE: dict[str, Any] = {"color": RED, "linestyle": "-", "linewidth": 2.4}
CUSTOMERS, WINDOW_S = 8, 12.5
"""Of the trace servegen-reasoning: how many there are, and the length of a window in which their load was recorded."""
POPULATIONS = {3: "providers-3", 8: "default", 32: "providers-32", 128: "providers-128", 512: "providers-512"}


def style(name: str) -> dict[str, Any]:
    """One look for an entrant in all pictures."""
    return LEARNED_STYLE if name == results.LEARNED else STYLES.get(name, {"color": GREEN}) | {"linewidth": 1.6}


def settings(figure: Figure) -> None:
    """SLO attainment over the threshold in the paper's four settings."""
    for axes, name in zip(figure.subplots(1, 4, sharey=True), results.SETTINGS, strict=True):
        found = results.kept(f"paper/{name}")
        thresholds = found["thresholds"]["values"]
        for entrant, part in found["entrants"].items():
            point, low, high = np.array(part["curve"]).T
            axes.plot(thresholds, point, label=entrant, **style(entrant))
            axes.fill_between(thresholds, low, high, color=style(entrant)["color"], alpha=0.12, linewidth=0)
        axes.set(title=name, xlabel="SLO threshold, s", xlim=results.PAPER_RANGE_S, ylim=(0.5, 1.02))
    figure.axes[0].set_ylabel("SLO attainment (IQM, 95 %)")
    figure.axes[0].legend(loc="lower right", frameon=False, fontsize=8)


def quality(figure: Figure) -> None:
    """Duel win rates and work by class of provider, beside what the paper reports."""
    names = ("model-size", "quantisation", "backends", "hardware")
    for axes, name in zip(figure.subplots(1, 4), names, strict=True):
        found = results.kept(f"paper/{name}")
        key = "duel_win_rate" if name in names[:2] else "executed_tokens"
        labels = list(found["reported"])
        told = np.array([next(iter(found["reported"][label].values())) for label in labels])
        ours = np.array([found["entrants"]["paper"]["groups"][label][key] for label in labels])
        scale = 1.0 if key == "duel_win_rate" else ours[:, 0].sum()
        told = told if key == "duel_win_rate" else told / told.sum()
        place = np.arange(len(labels))
        error = np.abs(ours[:, 1:].T - ours[:, 0]) / scale
        axes.bar(place - 0.2, ours[:, 0] / scale, 0.4, yerr=error, color=BLUE, label="here, rules `paper`")
        axes.bar(place + 0.2, told, 0.4, color="#bbbbbb", label="reported")
        axes.set_xticks(place, labels, fontsize=8)
        axes.set(title=name, ylabel="duel win rate" if key == "duel_win_rate" else "share of the work")
    figure.axes[0].legend(frameon=False, fontsize=8)


def over_time(figure: Figure) -> None:
    """Mean latency by time of arrival while providers join and leave."""
    for axes, name in zip(figure.subplots(1, 2, sharey=True), ("join", "leave"), strict=True):
        found = results.kept(f"paper/{name}")
        times = (np.arange(TIME_BINS) + 0.5) * found["horizon_s"] / TIME_BINS
        for entrant, part in found["entrants"].items():
            latency = np.array([np.nan if value is None else value for value in part["over_time"]])
            axes.plot(times, latency, label=entrant, **style(entrant))
        for at_s in (300, 450, 600):
            axes.axvline(at_s, color=INK, linewidth=0.6, linestyle=":")
        axes.set(title=name, xlabel="arrival, s", xlim=(0, 900))
    figure.axes[0].set_ylabel("mean latency, s")
    figure.axes[0].legend(frameon=False, fontsize=8)


def wealth(figure: Figure) -> None:
    """Wealth over time by quality of the answers, where some providers answer at random."""
    found = results.kept("paper/random-responders")
    for axes, name in zip(figure.subplots(1, 2, sharey=True), ("paper", results.LEARNED), strict=True):
        courses = found["entrants"][name]["wealth"]
        for colour, (label, course) in zip(SHADES, courses.items(), strict=True):
            axes.plot(np.linspace(0, found["horizon_s"], len(course)), np.array(course) - course[0], color=colour, label=label)
        axes.set(title=f"under {name}", xlabel="time, s")
    figure.axes[0].set_ylabel("change of a provider's credit and stake")
    figure.axes[0].legend(frameon=False, fontsize=8)


def populations(figure: Figure) -> None:
    """Attainment of one policy in markets of 3 to 512 providers."""
    axes = figure.subplots()
    found = {count: results.kept(f"beyond/{name}")["entrants"] for count, name in POPULATIONS.items()}
    for entrant in ("single", "paper", "central", results.LEARNED):
        counts = [count for count, entrants in found.items() if entrant in entrants]
        points = np.array([found[count][entrant]["summary"]["slo_attainment"] for count in counts])
        axes.errorbar(counts, points[:, 0], np.abs(points[:, 1:].T - points[:, 0]), label=entrant, capsize=2, **style(entrant))
    axes.set(xscale="log", xlabel="providers", ylabel="SLO attainment (IQM, 95 %)")
    axes.set_xticks(list(POPULATIONS), [str(count) for count in POPULATIONS])
    axes.minorticks_off()
    axes.legend(frameon=False, fontsize=8)


def constants(figure: Figure) -> None:
    """Attainment of every constant policy that stakes what the best one stakes, by levels of accept and forward."""
    found = results.kept("beyond/constants")
    stake = results.most(found)[0].rpartition("-")[2]
    levels = range(LEVELS)
    names = [[f"fixed:{accept}-{forward}-{stake}" for forward in levels] for accept in levels]
    shares = np.array([[found["entrants"][name]["summary"]["slo_attainment"][0] for name in row] for row in names])
    axes = figure.subplots()
    axes.imshow(shares, cmap="viridis", origin="lower")
    for (accept, forward), share in np.ndenumerate(shares):
        colour = "black" if share > shares.mean() else "white"
        axes.annotate(f"{share:.3f}", (forward, accept), ha="center", va="center", fontsize=8, color=colour)
    axes.set_xticks(levels, [_level(value) for value in FORWARD_LEVELS])
    axes.set_yticks(levels, [_level(value) for value in ACCEPT_LEVELS])
    axes.set(title=f"SLO attainment, {COMMIT_LEVELS[int(stake)] * 100:g} % staked")
    axes.set_xlabel("forward: offer above this share of the time left")
    axes.set_ylabel("accept: take up to this share")


def pooling(figure: Figure) -> None:
    """Customers who are hardly ever busy at once: attainment over the threshold, and how uneven the load of several together is."""
    curves, peaks = figure.subplots(1, 2)
    found = results.kept("beyond/trace-servegen")
    for entrant in ("single", "paper", results.LEARNED, "central"):
        curves.plot(
            found["thresholds"]["values"], np.array(found["entrants"][entrant]["curve"])[:, 0], label=entrant, **style(entrant)
        )
    curves.set(xlabel=f"threshold, {found['thresholds']['unit']}", ylabel="SLO attainment (IQM)", title="trace-servegen")
    curves.legend(frameon=False, fontsize=8)
    uneven = unevenness()
    peaks.plot(list(uneven), list(uneven.values()), color=INK, marker="o", markersize=4)
    peaks.axhline(uneven[CUSTOMERS], color=RED, linestyle=":", label="bound of pooling: all eight")
    peaks.set(xlabel="customers pooled", ylabel="99th percentile of the load over its mean", ylim=(0, None))
    peaks.legend(frameon=False, fontsize=8)


def unevenness() -> dict[int, float]:
    """Compute the 99th percentile of the load over its mean, averaged over all pools of 1 to CUSTOMERS customers of ServeGen.

    source   tokens as the head of envs/wwwserve/traces/servegen-reasoning.csv counts them: a prompt's are a tenth
    """
    edges = np.arange(0.0, 1800.0 + WINDOW_S, WINDOW_S)
    customers = [
        np.histogram(r[:, 0], edges, weights=r[:, 2] + r[:, 1] / 10)[0] for r in traces.deal("servegen-reasoning", CUSTOMERS)
    ]
    pools = {size: [np.sum(pool, axis=0) for pool in combinations(customers, size)] for size in range(1, CUSTOMERS + 1)}
    return {size: float(np.mean([np.percentile(load, 99) / load.mean() for load in loads])) for size, loads in pools.items()}


def social(figure: Figure) -> None:
    """What trainings reach when a provider is rewarded for itself, for the mean of all, and between; a point a seed."""
    found = results.kept("learning/social")
    panels = ("slo_attainment", "worst_provider_slo_attainment", "gini_wealth")
    for axes, metric in zip(figure.subplots(1, 3), panels, strict=True):
        for learner, colour, aside in (("ppo", RED, 0.0), ("mappo", BLUE, 0.03)):
            parts = [part for part in found["variants"].values() if part["agents"] == learner]
            weights = np.array([part["social"] for part in parts]) + aside
            points = np.array([part["summary"][metric] for part in parts])
            error = np.abs(points[:, 1:].T - points[:, 0])
            axes.errorbar(weights, points[:, 0], error, label=learner, color=colour, marker="o", capsize=3)
            for weight, part in zip(weights, parts, strict=True):
                seeds = part["per_seed"][metric]
                axes.scatter([weight] * len(seeds), seeds, color=colour, s=10, alpha=0.5)
        axes.set(title=results.TRAINED[metric][0], xlabel="weight of the mean over all providers")
    figure.axes[0].set_ylabel("IQM, 95 % over training seeds")
    figure.axes[0].legend(frameon=False, fontsize=8)


def _level(value: float) -> str:
    return "no limit" if value == NO_LIMIT else "none" if value < 0 else f"{value:g}"


def live(figure: Figure) -> None:
    """What users got on real engines, by load and policy."""
    summary = results.kept("live/plays")["summary"]
    loads = [where for where in summary["loads"] if where != OVERALL]
    shown = {"slo_attainment": "SLO attainment (mean, 95 %)", "latency_s_mean": "mean latency, s"}
    for axes, (metric, label) in zip(figure.subplots(1, 2), shown.items(), strict=True):
        for number, name in enumerate(summary["policies"]):
            points = np.array([summary["estimates"][load][name][metric] for load in loads])
            place = np.arange(len(loads)) + 0.06 * (number - 1)
            axes.errorbar(place, points[:, 0], np.abs(points[:, 1:].T - points[:, 0:1].T), label=name, capsize=3, **style(name))
        axes.set_xticks(np.arange(len(loads)), loads)
        axes.set(xlabel="users of the busy node, over its capacity", ylabel=label, ylim=(0.0, None))
    figure.axes[0].legend(frameon=False, fontsize=8)


DRAWINGS: dict[str, tuple[Callable[[Figure], None], tuple[float, float]]] = {
    "settings": (settings, (15, 3.8)),
    "quality": (quality, (15, 3.4)),
    "over_time": (over_time, (10, 3.4)),
    "credits": (wealth, (10, 3.4)),
    "populations": (populations, (5.5, 3.6)),
    "constants": (constants, (4.6, 4.2)),
    "pooling": (pooling, (10, 3.4)),
    "live": (live, (10, 3.4)),
    "social": (social, (12, 3.4)),
}


def draw_all(folder: Path) -> list[Path]:
    """Draw every picture; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    return [_draw(folder / f"{name}.png", *drawing) for name, drawing in DRAWINGS.items()]


def _draw(path: Path, paint: Callable[[Figure], None], size: tuple[float, float]) -> Path:
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    paint(figure)
    for axes in figure.axes:
        _plain(axes)
    written = io.BytesIO()
    figure.savefig(written, format="png", metadata={"Software": None})
    write_whole(path, written.getvalue())
    return path


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    if not axes.images:
        axes.grid(True, color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, labelsize=9)
