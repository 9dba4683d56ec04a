"""Tables, pictures and quoted figures are what the kept results say, and the results are those of the protocol."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from agents import protocol, suite
from benchmarks import figures, results
from benchmarks.results import KEPT, PAGES, ROOT, SETTINGS, fill, kept
from compose import compose
from settings import plain

LIVE = ("live/plays", "live/duels")
EVERY = sorted(path.relative_to(KEPT).with_suffix("").as_posix() for path in KEPT.glob("[!l]*/*.json"))
STUDIES = sorted(path.stem for path in (ROOT / "conf" / "learning").glob("*.yaml"))
ESTIMATE = re.compile(r"[-+]?\d+\.\d+ \[[-+]?\d+\.\d+, [-+]?\d+\.\d+\]")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_is_what_the_kept_results_say(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text == fill(text), f"{page.name} is stale; run make results"


@pytest.mark.parametrize("page", sorted({*PAGES, *(ROOT / "docs").glob("*.md")}), ids=lambda page: page.name)
def test_no_interval_is_quoted_that_the_results_do_not_hold(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert not ESTIMATE.findall(results.MARK.sub("", text)), "an interval outside of a table that is written by make results"


def test_every_experiment_of_every_suite_has_results_and_every_result_an_experiment() -> None:
    wanted = {f"{whose}/{name}" for name, (whose, _) in suite.load("full").items()}
    assert set(EVERY) == wanted, "play what is missing: python -m agents.evaluate --suite full"


@pytest.mark.parametrize("name", EVERY)
def test_results_are_of_the_protocol_and_of_the_entrants_that_the_suite_names(name: str) -> None:
    found = kept(name)
    _, experiment = suite.load(found["suite"])[found["experiment"]]
    assert found["seeds"] == (experiment.seeds or protocol.SEEDS) and found["first_seed"] == protocol.FIRST_SEED
    assert list(found["entrants"]) == list(suite.entrants(experiment))
    assert found["title"] == experiment.title and found["reported"] == experiment.reported
    for part in found["entrants"].values():
        point, low, high = part["summary"]["slo_attainment"]
        assert low <= point <= high
        assert set(part.get("groups", ())) == set(experiment.groups)


def test_every_table_is_shown_once() -> None:
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    shown = [match["name"] for match in results.MARK.finditer(text) if match["name"]]
    assert set(shown) == {*EVERY, *LIVE, *(f"learning/{name}" for name in STUDIES)}


@pytest.mark.parametrize(
    ("page", "text"),
    [
        ("<!-- table: paper/setting-9 -->\n<!-- end -->", r"setting-9: has no results; python -m agents.evaluate --suite paper"),
        ("<!-- learning: learning/none -->\n<!-- end -->", r"none.json: cannot be read .* python -m benchmarks.learning none"),
        ("<!-- plays: live/other -->\n<!-- end -->", r"live/other.json: is not there; python -m benchmarks.proof other"),
        ("<!-- plays -->\n<!-- end -->", "<!-- plays -->: needs SUITE/EXPERIMENT"),
        ("<!-- table -->\n<!-- end -->", "<!-- table -->: needs SUITE/EXPERIMENT"),
        ("<!-- claims: paper/setting-1 -->\n<!-- end -->", "<!-- claims -->: takes no SUITE/EXPERIMENT"),
    ],
)
def test_a_mark_that_names_nothing_is_refused(page: str, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        fill(page)


def test_a_table_has_a_row_an_entrant_from_the_worst_to_the_best_beside_what_the_paper_reports() -> None:
    found = kept("paper/setting-2")
    rows = [line for line in results.table(found).splitlines()[2:] if line.startswith("|")]
    points = [float(re.findall(r"\d\.\d+", row)[0]) for row in rows]
    assert len(rows) == len(found["entrants"]) and points == sorted(points)
    assert next(row for row in rows if "`single`" in row).endswith("| 226.6 |")
    assert found["command"] in results.table(found)


def test_a_table_of_groups_has_a_row_a_group_and_entrant_beside_what_the_paper_reports() -> None:
    found = kept("paper/model-size")
    rows = [line for line in results.groups(found).splitlines()[2:] if line.startswith("|")]
    assert len(rows) == 3 * len(found["entrants"])
    assert rows[0].startswith("| `paper` | Qwen3-8B |") and rows[0].endswith("| 0.57 |")


def told(point: float, beside: float) -> dict[str, Any]:
    """What is told in brief of one of many entrants."""
    return {
        "summary": {"slo_attainment": [point, point - 0.01, point + 0.01]},
        "difference": {"ppo_wwwserve": {"slo_attainment": [beside, beside - 0.01, beside + 0.01]}},
    }


def test_the_best_of_many_is_told_in_a_line_with_its_difference_from_the_learned_policy_which_is_not_one_of_them() -> None:
    entrants = {"ppo_wwwserve": told(0.99, 0), "fixed:0-0-0": told(0.5, -0.4), "fixed:2-3-1": told(0.9, -0.05), "x": told(0.7, 0.3)}
    found = {"title": "Many", "seeds": 7, "command": "python -m it", "entrants": entrants}
    line, _, foot = results.best(found).partition("\n\n")
    assert line == (
        "The best of 3: `fixed:2-3-1` with an attainment of 0.900 [0.890, 0.910]; "
        "less `ppo_wwwserve`, episode by episode: -0.050 [-0.060, -0.040]."
    )
    assert foot == "Many; 7 episodes. `python -m it`"


def test_all_125_constant_policies_were_played_and_the_one_beside_the_learned_policy_is_among_the_best_three() -> None:
    entrants = kept("beyond/constants")["entrants"]
    constants = sorted((name for name in entrants if name.startswith("fixed:")), key=lambda name: -attainment_of(entrants[name]))
    assert len(constants) == 125 and set(entrants) - set(constants) == {"ppo_wwwserve"}
    assert "fixed:2-3-2" in constants[:3], "docs/results.md says so"


def attainment_of(part: Any) -> float:
    """Point alone."""
    return float(part["summary"]["slo_attainment"][0])


@pytest.mark.parametrize("name", STUDIES)
def test_figures_of_learning_are_whole_by_the_protocol_and_at_equal_steps(name: str) -> None:
    found = kept(f"learning/{name}")  # of every study, and nothing beside them
    assert {path.stem for path in (KEPT / "learning").iterdir()} == set(STUDIES)
    values = plain(compose([f"learning={name}"], "learning").values, "conf/learning.yaml")
    study = values["learning"]
    assert found["title"] == study["title"] and list(found["variants"]) == list(study["variants"])
    assert (found["seeds"], found["steps"]) == (values["seeds"], values["steps"])
    assert (found["episodes"], found["first_episode"]) == (protocol.SEEDS, protocol.FIRST_SEED)
    for variant, part in found["variants"].items():
        assert part["set"] == [*study["train"], *study["variants"][variant], f"agents.steps={values['steps']}"]
        assert len(part["agent_steps"]) == len(values["seeds"])
        assert all(0 <= steps - values["steps"] < 0.05 * values["steps"] for steps in part["agent_steps"]), "whole rollouts"
        for point, low, high in part["summary"].values():
            assert low <= point <= high


def one_variant(agents: str, point: float, gap: float) -> dict[str, Any]:
    """What is kept of a variant."""
    triple, apart = [point, point - 0.01, point + 0.01], [gap, gap - 0.01, gap + 0.01]
    return {
        "agents": agents,
        "summary": dict.fromkeys(results.TRAINED, triple),
        "difference": {"slo_attainment": apart},
        "learning_s": [70.0, 60.0, 80.0],
        "agent_steps_per_s": [42_000.0, 37_500.0, 50_000.0],
    }


FIGURES_OF_LEARNING = {
    "title": "Some learners",
    "command": "python -m it",
    "seeds": [0, 1, 2],
    "steps": 3000,
    "episodes": 200,
    "cpus": 2,
    "load": [9.0, 8.0, 7.4],
    "variants": {
        "one": one_variant("ppo", 0.5, 0.0),
        "two": one_variant("mappo", 0.9, 0.4),
        "three": one_variant("ppo", 0.4, -0.1),
    },
}


def test_a_table_of_trainings_has_a_row_a_variant_in_the_order_of_its_file() -> None:
    head, _, *rows, empty, foot = results.trainings(FIGURES_OF_LEARNING).splitlines()
    assert [row.split(" | ")[0] for row in rows] == ["| `one`", "| `two`", "| `three`"] and not empty
    assert rows[1].startswith("| `two` | 0.900 [0.890, 0.910] |") and head.count("|") == rows[0].count("|")
    assert foot == ("Some learners; 3 seeds of training with 3,000 agent-steps each, 200 episodes of every policy. `python -m it`")


def test_a_table_of_cost_says_how_busy_the_machine_was() -> None:
    _, _, *rows, _, foot = results.cost(FIGURES_OF_LEARNING).splitlines()
    assert rows[1] == "| `two` | 70 (60 .. 80) | 42.0 (37.5 .. 50.0) |" and len(rows) == 3
    assert foot == (
        "Median, least and greatest of 3 seeds, on 2 cores, shared with other work: a load of 7 at the end. `python -m it`"
    )


def test_gaps_are_told_of_every_variant_but_the_first() -> None:
    assert results.gaps(FIGURES_OF_LEARNING) == (
        "Attainment less that of `one`, on the same episodes: `two` +0.400 [+0.390, +0.410], `three` -0.100 [-0.110, -0.090]."
    )


def attainment(name: str, entrant: str) -> Any:
    """Point, low and high."""
    return kept(name)["entrants"][entrant]["summary"]["slo_attainment"]


@pytest.mark.parametrize("name", [*(f"paper/{setting}" for setting in SETTINGS), "beyond/default"])
def test_the_learned_policy_reaches_what_was_asked(name: str) -> None:
    found = kept(name)["entrants"]
    learned, paper, central = (attainment(name, who) for who in ("ppo_wwwserve", "paper", "central"))
    assert learned[1] > paper[2], "attainment above the paper's rules, intervals disjoint"
    assert found["ppo_wwwserve"]["summary"]["latency_s_mean"][2] < found["paper"]["summary"]["latency_s_mean"][1]
    assert learned[0] >= attainment(name, "paper_central")[0]
    assert learned[0] - paper[0] >= 0.5 * (central[0] - paper[0]), "half of the gap closed"


@pytest.mark.parametrize("world", [world for world in results.SPECIALISTS if world != "six regions, chat"])
def test_the_learned_policy_has_nearly_all_that_a_specialist_gains(world: str) -> None:
    name, special = results.SPECIALISTS[world]
    paper, learned, specialist = (attainment(name, entrant)[0] for entrant in ("paper", "ppo_wwwserve", special))
    assert learned - paper >= 0.95 * (specialist - paper) > 0


def test_every_specialist_is_told_of() -> None:
    shipped = {path.name for path in (ROOT / "policies_trained").glob("ppo_*")} - {"ppo_wwwserve"}
    assert {special for _, special in results.SPECIALISTS.values()} == shipped


def test_attainment_over_single_is_half_as_much_again_at_a_threshold_of_the_papers_range() -> None:
    assert max(results.most_over_single(kept(f"paper/{setting}"))[0] for setting in SETTINGS) >= 1.5


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("model-size", "duel_win_rate"),
        ("quantisation", "duel_win_rate"),
        ("backends", "executed_tokens"),
        ("hardware", "executed_tokens"),
    ],
)
def test_classes_come_in_the_order_that_the_paper_reports(name: str, key: str) -> None:
    found = kept(f"paper/{name}")
    labels = sorted(found["reported"], key=lambda label: -next(iter(found["reported"][label].values())))
    ours = [found["entrants"]["paper"]["groups"][label][key][0] for label in labels]
    assert ours == sorted(ours, reverse=True)


def earned(name: str, entrant: str, group: str) -> Any:
    """Credits earned by a provider of a group: point, low, high."""
    return kept(name)["entrants"][entrant]["groups"][group]["earned"]


@pytest.mark.parametrize(
    ("name", "entrant", "cheats"),
    [
        ("beyond/free-riders", "ppo_wwwserve", "free riders"),
        ("beyond/free-riders", "with a bond", "free riders"),
        ("beyond/lemons", "with a bond", "lemons"),
        ("beyond/lemons", "paper with a bond", "lemons"),
    ],
)
def test_who_cheats_earns_less_than_who_is_honest(name: str, entrant: str, cheats: str) -> None:
    assert earned(name, entrant, cheats)[2] < min(0.0, earned(name, entrant, "honest")[1]), "intervals disjoint, and a loss"


def test_ten_identities_that_cannot_post_a_bond_earn_nothing_and_less_than_their_owner_would_in_one_piece() -> None:
    identity, whole = kept("beyond/sybils"), kept("beyond/one-piece")
    assert earned("beyond/sybils", "with a bond", "one identity") == [0.0, 0.0, 0.0]
    ten = 10 * identity["entrants"]["with a bond"]["groups"]["one identity"]["reward"][2]
    assert ten < whole["entrants"]["with a bond"]["groups"]["the provider"]["reward"][1]


def test_a_bond_leaves_the_learned_policy_above_the_papers_rules() -> None:
    assert attainment("beyond/bond", "ppo_wwwserve")[1] > attainment("beyond/bond", "paper")[2]


def test_the_more_customers_are_pooled_the_more_even_their_load() -> None:
    uneven = list(figures.unevenness().values())
    assert uneven == sorted(uneven, reverse=True) and len(uneven) == 8
    assert 6.0 < uneven[0] < 9.0 and 3.2 < uneven[-1] < 3.6, "one customer; all eight"


def test_a_picture_shows_something(tmp_path: Path) -> None:
    for path in figures.draw_all(tmp_path):
        with Image.open(path) as picture:
            assert len(np.unique(np.asarray(picture))) > 20, path.name
        assert (ROOT / "docs" / "figures" / path.name).is_file()
