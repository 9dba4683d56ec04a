"""Tables of what was played on real engines, for the results page."""

from collections.abc import Mapping
from typing import Any

from benchmarks.measure import cell
from benchmarks.proof.playing import LEARNED
from benchmarks.proof.summary import OVERALL

USERS = {
    "slo_attainment": ("SLO attainment", ".3f"),
    "latency_s_mean": ("mean latency, s", ".1f"),
    "latency_s_p50": ("median, s", ".1f"),
    "latency_s_p99": ("p99, s", ".1f"),
    "ttft_s_mean": ("mean TTFT, s", ".2f"),
    "delegated_share": ("delegated share", ".2f"),
}
"""What is shown of plays: metric -> heading and form."""
COMPARED = ("slo_attainment", "latency_s_mean", "latency_s_p99")
FORETOLD = {"slo_attainment": ("the simulator: SLO attainment", ".3f"), "latency_s_mean": ("mean latency, s", ".1f")}

Found = Mapping[str, Any]


def plays(found: Found) -> str:
    """Write what users got on real engines, a row a load and policy, and by how much the learned policy did better."""
    summary = found["summary"]
    heads = [head for head, _ in (*USERS.values(), *FORETOLD.values())]
    lines = [f"| users of the busy node | policy | {' | '.join(heads)} |", "|---|---|" + "---:|" * len(heads)]
    for where in summary["loads"]:
        for name in summary["policies"]:
            cells = [cell(summary["estimates"][where][name][metric], form) for metric, (_, form) in USERS.items()]
            told = summary["simulated"].get(where, {}).get(name)
            cells += [format(told[metric], form) if told else "-" for metric, (_, form) in FORETOLD.items()]
            lines.append(f"| {_users(where)} | `{name}` | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *_differences(summary), "", _footnote(found)])


def _differences(summary: Found) -> list[str]:
    others = [name for name in summary["policies"] if name != LEARNED]
    heads = [f"less `{other}`: {USERS[metric][0]}" for other in others for metric in COMPARED]
    lines = [f"| `{LEARNED}`, users of the busy node | {' | '.join(heads)} |", "|---|" + "---:|" * len(heads)]
    for where in summary["loads"]:
        part = summary["differences"][where]
        cells = [cell(part[other][metric], f"+{USERS[metric][1]}") for other in others for metric in COMPARED]
        lines.append(f"| {_users(where)} | {' | '.join(cells)} |")
    return lines


def _users(where: str) -> str:
    return "all loads" if where == OVERALL else f"{where} of its capacity"


def _footnote(found: Found) -> str:
    """Say how many plays there were and what was counted in them."""
    totals, settings = found["summary"]["totals"], found["settings"]
    sums = {key: sum(int(part[key]) for part in totals.values()) for key in totals[LEARNED]}
    least, middle, greatest = found["step_ms"]
    late = totals[LEARNED]
    parts = (
        f"{found['engine']}, {sums['plays']} plays of {settings['horizon_s']:g} s, {len(settings['seeds'])} repetitions",
        f"{sums['requests']} requests, of which {sums['failed']} failed",
        f"plays in which money was lost or made: {sums['plays_with_money_lost']}",
        f"plays in which the host was too busy to keep time: {sums['plays_too_busy']}",
        f"decisions for which the policy came too late: {late['decisions_by_rules']} of {late['decisions']}",
        f"an iteration of an engine before the plays: {middle:.1f} ms, from {least:.1f} to {greatest:.1f}",
    )
    return f"{'; '.join(parts)}. `{found['command']}`"


def duels(found: Found) -> str:
    """Write who won duels between real answers, a row a way of judging."""
    heads = (
        "duels",
        "decided",
        "undecided",
        "called off",
        "won by the honest one",
        "its share",
        "it gained, credits",
        "the lemon gained, credits",
    )
    lines = [f"| the judge goes by | {' | '.join(heads)} |", "|---|" + "---:|" * len(heads)]
    for name, part in found["summary"].items():
        share, gained = cell(part["honest_share"], ".3f"), part["credits_gained"]
        counts = [str(part[key]) for key in ("duels", "decided", "undecided", "called_off", "honest_wins")]
        cells = [*counts, share, f"{gained['honest']:.1f}", f"{gained['lemon']:.1f}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"{found['engine']}; the lemon: {found['lemon']}. `{found['command']}`"])
