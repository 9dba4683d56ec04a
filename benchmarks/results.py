"""Results as they are published: keeps an evaluation's summary in benchmarks/results/ and writes the tables of docs/results.md.

python -m benchmarks.results              write the tables of docs/results.md anew
python -m benchmarks.results FOLDER ...   first keep the summaries of these evaluations (folders that hold evaluation.json)
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
KEPT = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "results.md"
LEARNED = "ppo_wwwserve"
METRICS = {
    "slo_attainment": ("SLO attainment", ".3f"),
    "latency_s_mean": ("mean latency, s", ".1f"),
    "latency_s_p99": ("p99 latency, s", ".0f"),
    "delegated_share": ("delegated share", ".2f"),
}
FACTS = ("protocol", "scenario", "first_seed", "seeds", "horizon_s", "statistic", "source")


def keep(folder: Path) -> Path:
    """Keep what is published of FOLDER/evaluation.json: facts, summaries, paired differences; returns the file written."""
    found = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    policies = {
        name: {"summary": part["summary"], "difference": part["difference"]} for name, part in sorted(found["policies"].items())
    }
    target = KEPT / f"{found['scenario']}.json"
    kept = {fact: found[fact] for fact in FACTS} | {"policies": policies}
    target.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    return target


def table(kept: dict[str, Any]) -> str:
    """Write one scenario's table, a row a policy, each figure with its 95 % interval, and the command that gives it."""
    heads = [head for head, _ in METRICS.values()]
    lines = [f"| policy | {' | '.join(heads)} |", "|---|" + "---:|" * len(heads)]
    for name, part in sorted(kept["policies"].items(), key=lambda item: item[1]["summary"]["slo_attainment"][0]):
        cells = []
        for metric, (_, form) in METRICS.items():
            point, low, high = part["summary"][metric]
            cells.append(f"{point:{form}} [{low:{form}}, {high:{form}}]")
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    names = ",".join(name if name != LEARNED else f"policies_trained/{name}" for name in kept["policies"])
    command = f"python -m agents.evaluate env={kept['scenario']} policies=[{names}] seeds={kept['seeds']}"
    return "\n".join([*lines, "", f"`{command}`"])


def fill(page: str) -> str:
    """Put each kept table between its marks, `<!-- table: SCENARIO -->` and `<!-- end -->`.

    errors   ValueError for a mark without a kept result
    """
    parts = page.split("<!-- table: ")
    out = [parts[0]]
    for part in parts[1:]:
        name, _, rest = part.partition(" -->")
        file = KEPT / f"{name}.json"
        if not file.is_file():
            raise ValueError(
                f"docs/results.md: <!-- table: {name} --> has no {file.name} in benchmarks/results; evaluate it and keep it"
            )
        _, end, after = rest.partition("<!-- end -->")
        if not end:
            raise ValueError(f"docs/results.md: <!-- table: {name} --> has no <!-- end -->")
        out.append(f"{name} -->\n{table(json.loads(file.read_text(encoding='utf-8')))}\n<!-- end -->{after}")
    return "<!-- table: ".join(out)


def main(folders: Sequence[str]) -> None:
    """Keep the evaluations of `folders`, then write the page."""
    for folder in folders:
        print(f"kept {keep(Path(folder)).relative_to(ROOT)}")
    PAGE.write_text(fill(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main(sys.argv[1:])
