"""The picture is drawn for every kind of evaluation, the same each time."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from stand_ins import SmallMarket

from agents import report
from agents.evaluate import evaluate
from agents.policy import Baseline, LevelsPolicy, load
from agents.report import draw
from agents.scores import Evaluation

LEARNERS = ("ppo", "maskable_ppo")


def played(*names: str, **market: Any) -> Evaluation:
    policies = [
        Baseline(name, "policy", "market", LevelsPolicy(name, (4, 0, 0))) if name in LEARNERS else load(name) for name in names
    ]
    return evaluate(partial(SmallMarket, **market), policies, 3, 1_000_000)


@pytest.mark.parametrize(
    ("names", "market"),
    [
        (("single", "paper", "paper_central", "central", "uniform", "ppo", "maskable_ppo"), {}),
        (("paper",), {"slos_s": (3.0, 10.0)}),
        (("single", "ppo"), {"providers": 30}),
    ],
)
def test_a_picture_is_drawn_and_nothing_else_is_left(names: tuple[str, ...], market: dict[str, Any], tmp_path: Path) -> None:
    draw(played(*names, **market), tmp_path / "report.png")
    assert [path.name for path in tmp_path.iterdir()] == ["report.png"]
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_evaluation_gives_the_same_picture(tmp_path: Path) -> None:
    draw(played("single", "paper"), tmp_path / "a.png")
    draw(played("single", "paper"), tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_every_policy_has_a_look_of_its_own() -> None:
    evaluation = played("single", "paper", "paper_central", "central", "uniform", "ppo", "maskable_ppo")
    looks = [report._style(evaluation, name) for name in evaluation.played]
    assert len({(look["color"], str(look["linestyle"])) for look in looks}) == len(looks)


def test_the_axes_name_their_units_and_every_policy_stands_in_the_legend() -> None:
    evaluation = played("single", "paper", "ppo")
    figure = Figure()
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    report._attainment(axes, evaluation)
    assert axes.get_xlabel() == "SLO threshold (s)"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["single", "paper", "ppo"]


def test_the_wealth_is_that_of_the_learned_policy_or_else_of_the_papers_rules() -> None:
    assert report._protagonist(played("paper", "single")).name == "paper"
    assert report._protagonist(played("single", "central")).name == "central"
