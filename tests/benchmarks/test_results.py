"""The published tables are what the kept results say, and the README quotes them."""

import json
import re

import pytest

from benchmarks.results import KEPT, PAGE, ROOT, fill, table


def test_the_tables_of_the_page_are_those_of_the_kept_results() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == fill(page), "docs/results.md is stale; run python -m benchmarks.results"


def test_a_table_without_a_kept_result_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"paper-9.*no paper-9\.json"):
        fill("<!-- table: paper-9 -->\n<!-- end -->\n")
    with pytest.raises(ValueError, match="has no <!-- end -->"):
        fill("<!-- table: wwwserve -->\n")


def test_a_table_has_a_row_a_policy_from_the_worst_to_the_best() -> None:
    kept = json.loads((KEPT / "wwwserve.json").read_text(encoding="utf-8"))
    rows = [line for line in table(kept).splitlines()[2:] if line.startswith("|")]
    points = [float(re.findall(r"\d\.\d+", row)[0]) for row in rows]
    assert len(rows) == len(kept["policies"]) and points == sorted(points)


def test_every_figure_of_the_readme_result_stands_in_the_kept_results() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    quoted = readme.partition("<!-- result -->")[2].partition("<!-- end -->")[0]
    kept = json.loads((KEPT / "wwwserve.json").read_text(encoding="utf-8"))["policies"]
    for name in ("ppo_wwwserve", "paper", "single"):
        summary = kept[name]["summary"]
        for metric, form in (("slo_attainment", ".3f"), ("latency_s_mean", ".1f")):
            point, low, high = summary[metric]
            assert f"{point:{form}} [{low:{form}}, {high:{form}}]" in quoted


def test_the_shipped_policy_is_apart_from_the_papers_rules_where_it_is_said_to_be() -> None:
    for scenario in ("wwwserve", "paper-1", "paper-2", "paper-3", "paper-4"):
        kept = json.loads((KEPT / f"{scenario}.json").read_text(encoding="utf-8"))["policies"]
        learned, paper = kept["ppo_wwwserve"]["summary"], kept["paper"]["summary"]
        assert learned["slo_attainment"][1] > paper["slo_attainment"][2]
        assert learned["latency_s_mean"][2] < paper["latency_s_mean"][1]
