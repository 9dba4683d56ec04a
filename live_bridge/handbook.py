"""Writes the tables of docs/live.md that programs know: every setting, every metric, every bound of `live_bridge check`.

`python -m live_bridge.handbook` writes the file anew after a change; a test fails while it is stale.
"""

from collections.abc import Sequence
from pathlib import Path

from live_bridge.compare import BOUNDS, EASY, HARD, Bound
from live_bridge.config import documented
from live_bridge.metrics import NodeMetrics

FILE = Path("docs/live.md")
BEGIN = "<!-- {}: written by `python -m live_bridge.handbook` -->\n"
END = "<!-- end of {} -->\n"
OURS = "wwwserve_"
ANY = "..."
"""Stands for the values of a label that are not known beforehand: reasons, names."""


class StaleMarksError(ValueError):
    """A page has no place for a table; the text names both."""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table in Markdown; a bar in a cell stays a bar."""
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def settings_table() -> str:
    """Write every setting, as conf/live/node.yaml says them."""
    return table(("setting", "default", "meaning"), [(f"`{key}`", f"`{value}`", meaning) for key, value, meaning in documented()])


def metrics_table() -> str:
    """Write every metric of a node, with its labels and their values."""
    metrics = NodeMetrics()
    metrics.refused(ANY)
    metrics.http_error(ANY)
    metrics.reading(ANY)
    metrics.identify(ANY, ANY, ANY, ANY)
    rows = []
    for family in metrics.registry.collect():
        if not family.name.startswith(OURS):
            continue
        labels: dict[str, list[str]] = {}
        for sample in family.samples:
            for label, value in sample.labels.items():
                if label != "le" and value not in labels.setdefault(label, []):
                    labels[label].append(value)
        name = f"{family.name}_total" if family.type == "counter" else family.name
        said = "; ".join(f"{label}: {', '.join(values)}" for label, values in labels.items())
        rows.append((f"`{name}`", family.type, said, family.documentation))
    return table(("metric", "type", "labels", "meaning"), rows)


def bounds_table() -> str:
    """Write every bound of `live_bridge check` and its reason."""
    head = ("metric", f"load <= {EASY:g}", f"<= {HARD:g}", "above", "why")
    return table(head, [(f"`{bound.metric}`", *_limits(bound), bound.reason) for bound in BOUNDS])


def _limits(bound: Bound) -> list[str]:
    unit = "%" if bound.way == "relative" else "points"
    return ["shown" if limit is None else f"{100 * limit:g} {unit}" for limit in (bound.easy, bound.middle, bound.hard)]


TABLES = {"settings": settings_table, "metrics": metrics_table, "bounds": bounds_table}


def with_tables(text: str) -> str:
    """Return a page with each table between its marks.

    errors   StaleMarksError when a mark is missing, stands twice, or out of order
    """
    for name, write in TABLES.items():
        begin, end = BEGIN.format(name), END.format(name)
        if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
            raise StaleMarksError(f"{FILE}: must hold {begin.strip()} and then {end.strip()}, each once; put them back")
        before, rest = text.split(begin)
        text = f"{before}{begin}{write()}{end}{rest.split(end)[1]}"
    return text


if __name__ == "__main__":
    FILE.write_text(with_tables(FILE.read_text(encoding="utf-8")), encoding="utf-8")
