"""The results page: tables and pictures of docs/results.md, written from what is kept in benchmarks/results and nothing else.

python -m benchmarks.results     write the page's tables, and the pictures in docs/figures; `make results` is the same
"""

import argparse
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from agents import findings
from benchmarks import learning
from benchmarks.measure import Spread, cell
from benchmarks.proof import kept as live
from benchmarks.proof import tables

ROOT = Path(__file__).parent.parent
KEPT = ROOT / "benchmarks" / "results"
PAGES = (ROOT / "docs" / "results.md", ROOT / "docs" / "policies.md", ROOT / "README.md")
FIGURES = ROOT / "docs" / "figures"
LEARNED = "ppo_wwwserve"
SETTINGS = ("setting-1", "setting-2", "setting-3", "setting-4")
KINDS = "table|groups|best|plays|duels|learning|gaps|cost|claims|leaderboard|headline|specialists|society"
MARK = re.compile(rf"<!-- (?P<kind>{KINDS})(?:: (?P<name>[\w/-]+))? -->\n.*?<!-- end -->", re.DOTALL)
METRICS = {
    "slo_attainment": ("SLO attainment", ".3f"),
    "latency_s_mean": ("mean latency, s", ".1f"),
    "latency_s_p99": ("p99 latency, s", ".0f"),
    "delegated_share": ("delegated share", ".2f"),
}
SEATS = {
    "reward": ("reward", ".1f"),
    "earned": ("credits earned", ".1f"),
    "executed": ("answers to users", ".1f"),
    "slo_attainment": ("SLO attainment", ".3f"),
    "duel_win_rate": ("duel win rate", ".2f"),
}
WORLDS = (*(f"paper/{setting}" for setting in SETTINGS), "beyond/default")
"""Experiments that claims are made of."""
SPECIALISTS = {
    **{setting: (f"paper/{setting}", f"ppo_paper-{number}") for number, setting in enumerate(SETTINGS, 1)},
    "hardware that no training has met": ("beyond/new-hardware", "ppo_new-hardware"),
    "3 providers": ("beyond/providers-3", "ppo_population-3"),
    "32 providers": ("beyond/providers-32", "ppo_population-32"),
    "day and night": ("beyond/diurnal", "ppo_diurnal"),
    "flash crowd": ("beyond/flash-crowd", "ppo_flash-crowd"),
    "Azure's conversations": ("beyond/trace-azure", "ppo_trace-azure"),
    "ServeGen's customers": ("beyond/trace-servegen", "ppo_trace-servegen"),
    "six regions, chat": ("beyond/wan", "ppo_wan"),
}
"""World -> its experiment, and the policy that was trained on in it from the learned one."""
TRAINED = {
    "slo_attainment": ("SLO attainment", ".3f"),
    "worst_provider_slo_attainment": ("of the worst-served", ".3f"),
    "latency_s_mean": ("mean latency, s", ".1f"),
    "welfare": ("welfare", ".0f"),
    "gini_wealth": ("Gini of wealth", ".3f"),
    "delegated_share": ("delegated share", ".2f"),
}
"""What is shown of trainings: metric -> heading and form."""
COST = {"learning_s": ("learning, s", ",.0f", 1.0), "agent_steps_per_s": ("thousand agent-steps/s", ".1f", 1e3)}
"""What their learning took: key -> heading, form, unit."""
PAPER_RANGE_S = (200.0, 450.0)
"""SLO thresholds that the paper sweeps."""

Found = Mapping[str, Any]


def kept(name: str) -> dict[str, Any]:
    """Read the results of SUITE/EXPERIMENT, the figures of learning/NAME, or what was played on real engines as live/PART.

    errors   ValueError when there are none, or of another protocol
    """
    path = KEPT / f"{name}.json"
    suite, _, experiment = name.partition("/")
    if suite == "learning":
        return learning.read_kept(path)
    if suite == "live":
        return live.read(path)
    if not path.is_file():
        raise ValueError(f"{name}: has no results; python -m agents.evaluate --suite {suite} only=[{experiment}]")
    return findings.read(path)


def table(found: Found) -> str:
    """Write an experiment's table, a row an entrant from the worst to the best, beside what the paper reports."""
    reported = {name: values["latency_s_mean"] for name, values in found["reported"].items() if "latency_s_mean" in values}
    heads = [head for head, _ in METRICS.values()] + (["the paper's mean latency, s"] if reported else [])
    lines = [f"| entrant | {' | '.join(heads)} |", "|---|" + "---:|" * len(heads)]
    for name, part in sorted(found["entrants"].items(), key=lambda item: item[1]["summary"]["slo_attainment"][0]):
        cells = [cell(part["summary"][metric], form) for metric, (_, form) in METRICS.items()]
        cells += [f"{reported[name]:.1f}" if name in reported else "-"] if reported else []
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join([*lines, "", _foot(found)])


def groups(found: Found) -> str:
    """Write a table of an experiment's groups of providers, under each entrant, beside what the paper reports."""
    told = sorted({key for values in found["reported"].values() for key in values})
    heads = [head for head, _ in SEATS.values()] + [f"the paper: {key.replace('_', ' ')}" for key in told]
    lines = [f"| entrant | providers | {' | '.join(heads)} |", "|---|---|" + "---:|" * len(heads)]
    for name, part in found["entrants"].items():
        for label, seat in part["groups"].items():
            cells = [cell(seat[key], form) for key, (_, form) in SEATS.items()]
            cells += [_number(found["reported"].get(label, {}).get(key)) for key in told]
            lines.append(f"| `{name}` | {label} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", _foot(found)])


def best(found: Found) -> str:
    """Write in a line which of many entrants is the best, and how it compares with the learned policy on the same episodes."""
    name, part = most(found)
    attainment, beside = part["summary"]["slo_attainment"], part["difference"][LEARNED]["slo_attainment"]
    return (
        f"The best of {len(found['entrants']) - 1}: `{name}` with an attainment of {cell(attainment, '.3f')}; "
        f"less `{LEARNED}`, episode by episode: {cell(beside, '+.3f')}.\n\n{_foot(found)}"
    )


def most(found: Found) -> tuple[str, Found]:
    """Find the entrant with the highest attainment, the learned policy aside."""
    others = {name: part for name, part in found["entrants"].items() if name != LEARNED}
    name = max(others, key=lambda name: others[name]["summary"]["slo_attainment"][0])
    return name, others[name]


def trainings(found: Found) -> str:
    """Write a table of trainings, a row a variant: what it reached from all its seeds."""
    lines = [f"| variant | {' | '.join(head for head, _ in TRAINED.values())} |", "|---|" + "---:|" * len(TRAINED)]
    for name, part in found["variants"].items():
        cells = [cell(part["summary"][metric], form) for metric, (_, form) in TRAINED.items()]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    seeds = f"{len(found['seeds'])} seeds of training with {found['steps']:,} agent-steps each"
    return "\n".join([*lines, "", f"{found['title']}; {seeds}, {found['episodes']} episodes of every policy. `{found['command']}`"])


def cost(found: Found) -> str:
    """Write a table of what the learning of each variant took, over its seeds, and how busy the machine was."""
    lines = [f"| variant | {' | '.join(head for head, *_ in COST.values())} |", "|---|" + "---:|" * len(COST)]
    for name, part in found["variants"].items():
        cells = [Spread(*part[key]).over(unit).text(form) for key, (_, form, unit) in COST.items()]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    busy = f"{found['cpus']} cores, shared with other work: a load of {found['load'][2]:.0f} at the end"
    return "\n".join([*lines, "", f"Median, least and greatest of {len(found['seeds'])} seeds, on {busy}. `{found['command']}`"])


def gaps(found: Found) -> str:
    """Write how far the attainment of each variant is from the first one's."""
    first, *others = found["variants"]
    told = [f"`{name}` {cell(found['variants'][name]['difference']['slo_attainment'], '+.3f')}" for name in others]
    return f"Attainment less that of `{first}`, on the same episodes: {', '.join(told)}."


def claims() -> str:
    """Write what is asked of the learned policy in the paper's settings and the default market, and how far it got."""
    heads = (
        "above `paper`",
        "at or above `paper_central`",
        "share of the gap to `central` closed",
        "over `single`, at a threshold",
    )
    lines = [f"| | {' | '.join(heads)} |", "|---|" + "---:|" * len(heads)]
    for name in WORLDS:
        found = kept(name)
        part = {key: one["summary"]["slo_attainment"] for key, one in found["entrants"].items()}
        delays = {key: one["summary"]["latency_s_mean"] for key, one in found["entrants"].items()}
        apart = part[LEARNED][1] > part["paper"][2] and delays[LEARNED][2] < delays["paper"][1]
        gap = (part[LEARNED][0] - part["paper"][0]) / (part["central"][0] - part["paper"][0])
        ratio, at_s = most_over_single(found)
        level = "yes" if part[LEARNED][0] >= part["paper_central"][0] else "no"
        told = "yes, both intervals disjoint" if apart else "not disjoint"
        lines.append(f"| {name.partition('/')[2]} | {told} | {level} | {gap:.0%} | {ratio:.2f} x at {at_s:.0f} s |")
    return "\n".join([*lines, "", "Of the tables below, by `python -m benchmarks.results`."])


def specialists() -> str:
    """Write what the learned policy gains over the paper's rules in each world of a specialist, and what the specialist gains."""
    heads = ("`paper`", f"`{LEARNED}`, which never met it", "its specialist", "share of the specialist's gain that the first has")
    lines = [f"| | {' | '.join(heads)} |", "|---|" + "---:|" * len(heads)]
    for world, (name, special) in SPECIALISTS.items():
        part = {key: one["summary"]["slo_attainment"] for key, one in kept(name)["entrants"].items()}
        gain, most_gained = part[LEARNED][0] - part["paper"][0], part[special][0] - part["paper"][0]
        share = f"{gain / most_gained:.0%}" if most_gained > 0 else "neither gains"
        cells = [cell(part[key], ".3f") for key in ("paper", LEARNED, special)]
        lines.append(f"| {world} | {' | '.join(cells)} | {share} |")
    return "\n".join([*lines, "", "SLO attainment, of the tables of these worlds, by `python -m benchmarks.results`."])


def society() -> str:
    """Write what a market is worth to all, and to its worst-off: welfare, price of anarchy, the worst provider, Gini of wealth."""
    heads = {
        "welfare": ("welfare, reward of all", ".0f"),
        "price_of_anarchy": ("price of anarchy", ".3f"),
        "worst_provider_slo_attainment": ("attainment of the worst provider", ".3f"),
        "gini_wealth": ("Gini of wealth", ".3f"),
    }
    lines = [f"| | entrant | {' | '.join(head for head, _ in heads.values())} |", "|---|---|" + "---:|" * len(heads)]
    for name in WORLDS:
        for entrant in ("single", "paper", LEARNED):
            summary = kept(name)["entrants"][entrant]["summary"]
            cells = [cell(summary[metric], form) for metric, (_, form) in heads.items()]
            lines.append(f"| {name.partition('/')[2]} | `{entrant}` | {' | '.join(cells)} |")
    return "\n".join([*lines, "", "Of the tables of these worlds, by `python -m benchmarks.results`."])


def most_over_single(found: Found) -> tuple[float, float]:
    """Find the threshold in the paper's range at which the learned policy's attainment is the largest multiple of `single`'s."""
    curves = [found["entrants"][name]["curve"] for name in (LEARNED, "single")]
    at = [(a[0] / b[0], s) for a, b, s in zip(*curves, found["thresholds"]["values"], strict=True) if _in_range(s) and b[0] > 0]
    return max(at)


def _in_range(threshold_s: float) -> bool:
    return PAPER_RANGE_S[0] <= threshold_s <= PAPER_RANGE_S[1]


def headline() -> str:
    """Write the README's result."""
    part = kept("beyond/default")["entrants"]
    rows = {
        "single": "every provider alone",
        "paper": "the paper's rules",
        LEARNED: "learned, selfish providers",
        "central": "an all-seeing scheduler",
    }
    lines = [
        f"| the default market, {kept('beyond/default')['seeds']} episodes | SLO attainment | mean latency, s |",
        "|---|---:|---:|",
    ]
    for name, label in rows.items():
        summary = part[name]["summary"]
        lines.append(f"| {label} | {cell(summary['slo_attainment'], '.3f')} | {cell(summary['latency_s_mean'], '.1f')} |")
    return "\n".join(lines)


def leaderboard() -> str:
    """Write every trained policy's attainment in every setting, beside the paper's rules and the scheduler that sees all."""
    columns = {"default": "beyond/default", **{setting: f"paper/{setting}" for setting in SETTINGS}}
    results = {label: kept(name)["entrants"] for label, name in columns.items()}
    names = sorted({name for entrants in results.values() for name in entrants if not name.startswith("fixed:")})
    mean = {
        name: [entrants[name]["summary"]["slo_attainment"][0] for entrants in results.values() if name in entrants]
        for name in names
    }
    lines = [f"| policy | {' | '.join(columns)} |", "|---|" + "---:|" * len(columns)]
    for name in sorted(names, key=lambda name: (-len(mean[name]), -sum(mean[name]) / len(mean[name]))):
        cells = [cell(part[name]["summary"]["slo_attainment"], ".3f") if name in part else "-" for part in results.values()]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join([*lines, "", "SLO attainment; `python -m agents.evaluate --suite full`, then `python -m benchmarks.results`."])


def _foot(found: Found) -> str:
    return f"{found['title']}; {found['seeds']} episodes. `{found['command']}`"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"


WRITERS: dict[str, Callable[[], str]] = {
    "claims": claims,
    "headline": headline,
    "leaderboard": leaderboard,
    "specialists": specialists,
    "society": society,
}
TABLES: dict[str, Callable[[Found], str]] = {"table": table, "groups": groups, "best": best}
TABLES |= {"plays": tables.plays, "duels": tables.duels, "learning": trainings, "gaps": gaps, "cost": cost}


def fill(page: str) -> str:
    """Write what stands between the marks of a page: `<!-- table: SUITE/EXPERIMENT -->` ... `<!-- end -->`, and the like.

    errors   ValueError for a mark without results
    """

    def write(match: re.Match[str]) -> str:
        kind, name = match["kind"], match["name"]
        if (kind in TABLES) != (name is not None):
            raise ValueError(f"<!-- {kind} -->: {'needs' if kind in TABLES else 'takes no'} SUITE/EXPERIMENT")
        text = TABLES[kind](kept(name)) if kind in TABLES else WRITERS[kind]()
        mark = match[0].partition("\n")[0]
        return f"{mark}\n{text}\n<!-- end -->"

    return MARK.sub(write, page)


def main() -> None:
    """Write pages and pictures."""
    argparse.ArgumentParser("python -m benchmarks.results", description=(__doc__ or "").partition("\n")[0]).parse_args()
    from benchmarks import figures

    for page in PAGES:
        page.write_text(fill(page.read_text(encoding="utf-8")), encoding="utf-8")
        print(f"wrote {page.relative_to(ROOT)}")
    for path in figures.draw_all(FIGURES):
        print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
