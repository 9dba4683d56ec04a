"""Draws an evaluation as one picture: SLO attainment over the threshold, latencies, and wealth over time. Knows only scores."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from agents.publish import write_whole
from agents.scores import Evaluation, Played
from agents.statistics import band

BLUE, ORANGE, GREEN, RED, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
"""Colours of Okabe and Ito, which people with any colour vision tell apart."""
STYLES: dict[str, dict[str, Any]] = {
    "single": {"color": "#777777", "linestyle": (0, (1, 1))},
    "paper": {"color": BLUE, "linestyle": "-"},
    "paper_central": {"color": ORANGE, "linestyle": (0, (5, 2))},
    "central": {"color": "black", "linestyle": (0, (4, 1, 1, 1))},
    "uniform": {"color": SKY, "linestyle": (0, (3, 2))},
}
OTHERS = (RED, GREEN, PURPLE)
LEGEND_MOST = 8
"""Providers that get a line in the legend; more would hide the picture."""
INK = "#333333"


def draw(evaluation: Evaluation, path: Path) -> None:
    """Write the picture as a PNG file, in one move."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(15, 4.9), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    left, middle, right = figure.subplots(1, 3)
    _attainment(left, evaluation)
    _latency(middle, evaluation)
    _wealth(right, evaluation, _protagonist(evaluation))
    for axes in (left, middle, right):
        _plain_frame(axes)
    figure.suptitle(f"{evaluation.scenario}: {evaluation.seeds} seeds of {evaluation.horizon_s:g} s", fontsize=13, color=INK)
    written = io.BytesIO()
    figure.savefig(written, format="png", metadata={"Software": None})
    write_whole(path, written.getvalue())


def _attainment(axes: Axes, evaluation: Evaluation) -> None:
    """The paper's figure: share of requests within the threshold, as the threshold is varied."""
    for name, played in evaluation.played.items():
        point, low, high = band(played.curve)
        style = _style(evaluation, name)
        axes.plot(evaluation.thresholds, point, label=name, **style)
        axes.fill_between(evaluation.thresholds, low, high, color=style["color"], alpha=0.12, linewidth=0)
    _mark_slo(axes, evaluation)
    axes.set_title("SLO attainment")
    axes.set_xlabel("SLO threshold (multiples of each request's SLO)" if evaluation.relative else "SLO threshold (s)")
    axes.set_ylabel("share of due requests (IQM of seeds, 95 % interval)")
    axes.set_ylim(0, 1.02)
    axes.legend(loc="lower right", frameon=False, fontsize=9)


def _latency(axes: Axes, evaluation: Evaluation) -> None:
    """Share of due requests answered within a time; a curve that ends below 1 has requests without an answer."""
    longest = 0.0
    for name, played in evaluation.played.items():
        pooled = np.sort(np.concatenate(played.latencies_s))
        answered = pooled[np.isfinite(pooled)]
        share = np.arange(1, len(answered) + 1) / len(pooled)
        end = len(answered) / len(pooled)
        axes.step(np.r_[0.0, answered, evaluation.horizon_s], np.r_[0.0, share, end], where="post", **_style(evaluation, name))
        longest = max(longest, float(answered[-1]) if len(answered) else 0.0)
    if not evaluation.relative:
        _mark_slo(axes, evaluation)
    axes.set_title("Latency")
    axes.set_xlabel("arrival to last token (s)")
    axes.set_ylabel("share of due requests answered, all seeds")
    axes.set_xlim(0, longest or evaluation.horizon_s)
    axes.set_ylim(0, 1.02)


def _wealth(axes: Axes, evaluation: Evaluation, played: Played) -> None:
    """Credit and stake of each provider, averaged over seeds."""
    mean = played.wealth.mean(axis=1)
    count = mean.shape[1]
    colours = _spread(count)
    for provider in range(count):
        label = f"provider {provider}" if count <= LEGEND_MOST else None
        axes.plot(evaluation.times_s, mean[:, provider], color=colours[provider], linewidth=1.4, label=label)
    axes.set_title(f"Wealth under {played.name}")
    axes.set_xlabel("time (s)")
    axes.set_ylabel("credit and stake (credits, mean of seeds)")
    axes.set_xlim(0, evaluation.horizon_s)
    if count <= LEGEND_MOST:
        axes.legend(loc="best", frameon=False, fontsize=8, ncols=2)
    else:
        axes.annotate(f"{count} providers", (0.02, 0.95), xycoords="axes fraction", color=INK, fontsize=9)


def _mark_slo(axes: Axes, evaluation: Evaluation) -> None:
    axes.axvline(evaluation.slo, color=INK, linewidth=0.8, linestyle=":")
    axes.annotate("SLO", (evaluation.slo, 0.02), (3, 0), "data", textcoords="offset points", color=INK, fontsize=9)


def _protagonist(evaluation: Evaluation) -> Played:
    """The learned policy; without one, the paper's rules, or whatever was played last."""
    learned = [played for played in evaluation.played.values() if played.agent_steps is not None]
    paper = [played for played in evaluation.played.values() if played.name == "paper"]
    return (learned or paper or list(evaluation.played.values()))[-1]


def _style(evaluation: Evaluation, name: str) -> dict[str, Any]:
    if name in STYLES:
        return STYLES[name] | {"linewidth": 1.6}
    others = [other for other in evaluation.played if other not in STYLES]
    place = others.index(name)
    return {"color": OTHERS[place % len(OTHERS)], "linestyle": ("-", "--", ":")[place // len(OTHERS) % 3], "linewidth": 2.4}


def _spread(count: int) -> list[Any]:
    """Colours for providers: apart from each other while they have a legend, then along cividis without its palest end."""
    if count <= LEGEND_MOST:
        return ["black", BLUE, SKY, GREEN, ORANGE, RED, PURPLE, "#888888"][:count]
    return [colormaps["cividis"](value) for value in np.linspace(0.0, 0.88, count)]


def _plain_frame(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.title.set_color(INK)
    axes.tick_params(colors=INK, labelsize=9)
