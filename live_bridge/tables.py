"""Tables and remarks of `check` for people: what the simulator said, what real nodes did, and whether that is close enough."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from agents.metrics import METRICS
from live_bridge.compare import BOUNDS, EASY, HARD, Comparison, Line
from live_bridge.episode import Episode
from live_bridge.load import Outcome, Punctuality
from live_bridge.stage import Stage

COLOURS = {"within": "green", "luck": "yellow", "missed": "bold red", "shown": "dim"}
SAID = {"within": "within", "luck": "luck?", "missed": "MISSED", "shown": "-"}
REASONS_MOST, REASON_LONG = 3, 160
UNITS = {name: metric.unit for name, metric in METRICS.items()} | {"makespan_s": "s", "money": "credits", "duels": "duels"}


def headline(episode: Episode, stage: Stage) -> str:
    """What is played."""
    users = f"{len(episode.demand)} requests to {len(episode.places)} providers in {episode.arrivals_until_s:g} s"
    pace = f"{stage.speed:g} times as fast as real" if stage.speed != 1.0 else "in real time"
    return f"{episode.scenario}, seed {episode.seed}: {users}, watched for {episode.horizon_s:g} s; {stage.backend} engines, {pace}"


def comparison(found: Comparison) -> Table:
    """One policy in both worlds."""
    plays = f"{found.replays} replays, {found.repetitions} live"
    table = Table(title=f"{found.policy}: load {found.load:.2f} at the busiest engine ({plays})", title_justify="left")
    table.add_column("metric")
    for name in ("simulated", "live", "difference", "luck", "bound"):
        table.add_column(name, justify="right")
    table.add_column("")
    for line in found.lines:
        limit = "-" if line.bound is None else f"{100 * line.bound:.1f} %"
        cells = (_value(line.simulated), _value(line.live), f"{100 * line.difference:+.1f} %", f"± {100 * line.luck:.1f} %", limit)
        name = f"{line.metric} ({UNITS[line.metric]})" if UNITS.get(line.metric, "share") != "share" else line.metric
        table.add_row(
            name, *(_money(line) if line.metric == "money" else cells), f"[{COLOURS[line.verdict]}]{SAID[line.verdict]}[/]"
        )
    return table


def _money(line: Line) -> tuple[str, ...]:
    return (_value(line.simulated), _value(line.live), f"{line.difference:+.6g}", "none", "0")


def _value(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def remarks(found: Sequence[Comparison], lateness: Mapping[str, Sequence[Punctuality]], late_ms: float) -> Iterator[str]:
    """What a reader has to know beside the tables."""
    yield "difference: live less simulated, as a share of the simulated value; of shares, in points. luck: two standard deviations"
    yield "of what the simulator's own replays differ by, and so what one live play may differ by without any error."
    for one in found:
        blind = ", ".join(name for name in one.blind if name not in one.missed)
        if blind:
            yield f"[yellow]{one.policy}: luck is greater than the bound for {blind}; more --repetitions tell more[/]"
        if one.load > HARD:
            yield f"{one.policy}: above load {HARD:g} times are shown and not judged; a smaller --load judges them"
        late = max(mark.p99_ms for mark in lateness[one.policy])
        if late > late_ms:
            rest = "too busy to measure; use a smaller --speed or an idle host"
            yield f"[bold red]{one.policy}: this host was late by {late:.0f} ms (p99): {rest}[/]"
    missed = [f"{one.policy}: {', '.join(one.missed)}" for one in found if one.missed]
    yield f"[bold red]MISSED by {'; '.join(missed)}[/]" if missed else "[green]every bound is kept[/]"


def failures(policy: str, outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Why requests have failed, the commonest reasons first."""
    reasons = Counter(one.why[:REASON_LONG] for one in outcomes if one.why)
    for why, count in reasons.most_common(REASONS_MOST):
        yield f"{policy}: {count} of {len(outcomes)} requests failed: {why}"
    rest = sum(reasons.values()) - sum(count for _, count in reasons.most_common(REASONS_MOST))
    if rest:
        yield f"{policy}: {rest} more failed for other reasons"


def relieved(policy: str, actions: NDArray[np.int64] | None, ruled: int) -> Iterator[str]:
    """How often rules decided in a policy's place."""
    if actions is not None and ruled:
        total = int(actions[0].sum()) + ruled
        yield f"[yellow]{policy}: rules made {ruled} of {total} decisions in its place: it was too slow, or failed[/]"


def bounds_text() -> str:
    """The table of bounds, plain, for --help and the docs."""
    lines = [f"  {'metric':<16} {f'load <= {EASY:g}':>12} {f'<= {HARD:g}':>8} {'above':>8}   why"]
    for bound in BOUNDS:
        cells = [
            "shown" if limit is None else f"{100 * limit:g} {'%' if bound.way == 'relative' else 'pt'}"
            for limit in (bound.easy, bound.middle, bound.hard)
        ]
        lines.append(f"  {bound.metric:<16} {cells[0]:>12} {cells[1]:>8} {cells[2]:>8}   {bound.reason}")
    return "\n".join(lines)
