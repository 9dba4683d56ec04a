"""A suite plays every entrant once, goes on where it stopped, and says by name what cannot be played."""

import json
import re
from pathlib import Path

import pytest

from agents import findings, protocol, suite
from agents.evaluate import main
from agents.suite import Entrant, Experiment, Settings, plan, play_cell, publish, run
from compose import compose
from settings import SettingsError

PLAIN = Experiment(
    title="a small one",
    set=["env=tiny"],
    seeds=None,
    policies=["single", "paper"],
    entrants={"bold": Entrant("fixed:4-3-2", {"fixed:0-4-0": [0]}, ["market.duel_rate=0.5"])},
    groups={"visitor": [0], "residents": [1, 2]},
    reported={"paper": {"latency_s_mean": 9.0}},
)


def settings(folder: Path, seeds: int | None = 2) -> Settings:
    """Where a test plays."""
    return Settings(only=[], seeds=seeds, output=str(folder / "out"), cells=str(folder / "cells"), workers=1)


def changed(**values: object) -> Experiment:
    """PLAIN with other values."""
    return Experiment(**{**{name: getattr(PLAIN, name) for name in PLAIN.__dataclass_fields__}, **values})  # type: ignore[arg-type]


def test_every_entrant_is_one_cell_with_the_seeds_of_the_protocol(tmp_path: Path) -> None:
    cells = plan("s", "e", PLAIN, settings(tmp_path, seeds=None))
    assert [cell.entrant for cell in cells] == ["single", "paper", "bold"]
    assert {cell.seeds for cell in cells} == {protocol.SEEDS}
    assert plan("s", "e", changed(seeds=20), settings(tmp_path, seeds=None))[0].seeds == 20
    assert cells[2].words == ("env=tiny", "market.duel_rate=0.5")
    assert all(cell.weight > 0 and cell.path.parent == tmp_path / "cells" for cell in cells)


def test_a_cells_file_is_named_by_all_that_its_numbers_depend_on(tmp_path: Path) -> None:
    def paths(experiment: Experiment, seeds: int = 2) -> list[str]:
        return [cell.path.name for cell in plan("s", "e", experiment, settings(tmp_path, seeds))]

    first = paths(PLAIN)
    assert paths(changed(title="another", groups={}, reported={})) == first
    for other in (
        changed(set=["env=tiny", "market.judges=1"]),
        changed(set=["env=tiny", "env.horizon_s=90"]),
    ):
        assert not set(paths(other)) & set(first)
    assert not set(paths(PLAIN, seeds=3)) & set(first)
    moved = changed(entrants={"bold": Entrant("fixed:4-3-2", {"fixed:0-4-0": [1]}, ["market.duel_rate=0.5"])})
    assert paths(moved)[2] != first[2] and paths(moved)[:2] == first[:2]


def test_a_changed_rule_or_protocol_makes_a_cell_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = suite.digest_of(suite.SOURCES)
    rule = tmp_path / "market" / "ledger.py"
    rule.parent.mkdir()
    rule.write_text("")
    monkeypatch.setattr(suite, "ROOT", tmp_path)
    empty = suite.digest_of(suite.SOURCES)
    rule.write_text("x = 1")
    assert len({before, empty, suite.digest_of(suite.SOURCES)}) == 3


def test_a_suite_is_played_in_processes_and_a_second_call_plays_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run({"e": ("s", PLAIN)}, settings(tmp_path))
    first = capsys.readouterr()
    assert sorted(first.err.splitlines()) == [f"played s/e: {name}" for name in ("bold", "paper", "single")]
    path = tmp_path / "out" / "s" / "e.json"
    content = path.read_bytes()
    path.unlink()
    run({"e": ("s", PLAIN)}, settings(tmp_path))
    again = capsys.readouterr()
    assert again.err == "" and again.out == f"wrote {path}\n"
    assert path.read_bytes() == content


def test_a_star_in_a_policys_name_stands_for_one_entrant_of_each_level() -> None:
    names = list(suite.entrants(changed(policies=["paper", "fixed:*-3-*"], entrants={"bold": PLAIN.entrants["bold"]})))
    assert names == ["paper", *(f"fixed:{accept}-3-{commit}" for accept in range(5) for commit in range(5)), "bold"]
    assert list(suite.entrants(changed(policies=["single"], entrants={}))) == ["single"]


def test_of_one_of_many_entrants_its_estimates_and_its_difference_from_the_others_are_told(tmp_path: Path) -> None:
    many = changed(policies=["paper", "fixed:0-0-*"], entrants={}, groups={})
    cells = plan("s", "e", many, settings(tmp_path))
    for cell in cells:
        play_cell(cell)
    told = findings.read(publish("s", "e", many, cells, tmp_path))["entrants"]
    assert list(told) == ["paper", *(f"fixed:0-0-{commit}" for commit in range(5))]
    assert set(told["paper"]) > set(told["fixed:0-0-0"]) == {"summary", "difference", "policy", "visitors", "set"}
    one, other = told["fixed:0-0-4"], told["paper"]
    assert set(one["difference"]) == {"paper"}
    for metric, (point, low, high) in one["difference"]["paper"].items():
        assert low <= point <= high
        # of two seeds the interquartile mean is the mean, and that of differences the difference of means
        assert point == pytest.approx(one["summary"][metric][0] - other["summary"][metric][0], abs=1e-4)


def test_programs_evaluate_by_the_protocol_where_nothing_else_is_said() -> None:
    trained, evaluated = (compose([], config).values for config in ("config", "evaluate"))
    assert (trained.eval_seeds, trained.eval_first_seed) == (protocol.SEEDS, protocol.FIRST_SEED)
    assert evaluated.first_seed == protocol.FIRST_SEED


def test_an_interrupted_suite_gives_the_same_bytes(tmp_path: Path) -> None:
    cells = plan("s", "e", PLAIN, settings(tmp_path))
    for cell in cells:
        play_cell(cell)
    whole = publish("s", "e", PLAIN, cells, tmp_path / "a").read_bytes()
    cells[1].path.unlink()
    play_cell(cells[1])
    assert publish("s", "e", PLAIN, cells, tmp_path / "b").read_bytes() == whole


def test_what_is_published_tells_of_entrants_groups_and_the_paper(tmp_path: Path) -> None:
    cells = plan("s", "e", PLAIN, settings(tmp_path))
    for cell in cells:
        play_cell(cell)
    found = findings.read(publish("s", "e", PLAIN, cells, tmp_path))
    assert found["command"] == "python -m agents.evaluate --suite s only=[e]"
    assert found["reported"] == {"paper": {"latency_s_mean": 9.0}} and found["seeds"] == 2
    bold = found["entrants"]["bold"]
    assert (bold["policy"], bold["visitors"], bold["set"]) == (
        "fixed:4-3-2",
        {"fixed:0-4-0": [0]},
        ["env=tiny", "market.duel_rate=0.5"],
    )
    assert set(bold["groups"]) == {"visitor", "residents"} and set(bold["difference"]) == {"paper", "single"}
    point, low, high = bold["summary"]["slo_attainment"]
    assert 0 <= low <= point <= high <= 1
    assert bold["groups"]["visitor"]["stake"][0] < bold["groups"]["residents"]["stake"][0], "a free rider stakes nothing"
    assert len(bold["curve"]) == len(found["thresholds"]["values"])


@pytest.mark.parametrize(
    ("experiment", "text"),
    [
        (changed(set=["env=tiny", "market.duel_rates=1"]), "experiments.e.single.set market.duel_rates is not a setting"),
        (changed(set=["env=tinny"]), "experiments.e.single.set env=tinny names no file of conf/env; did you mean tiny?"),
        (changed(policies=["papr"]), "experiments.e.papr .*did you mean paper?"),
        (changed(entrants={"x": Entrant("single", {"paper": [3]}, [])}), r"experiments.e.x paper: seat must be .* \[0, 2\], got 3"),
    ],
)
def test_an_entrant_that_cannot_be_played_is_refused_before_anything_is_played(
    experiment: Experiment, text: str, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError) as refused:
        run({"e": ("s", experiment)}, settings(tmp_path))
    assert re.search(text.replace("?", r"\?"), str(refused.value)), refused.value
    assert str(refused.value).startswith("conf/suite/s.yaml")
    assert not (tmp_path / "cells").exists()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--suite", "papr"], "suite=papr names no file of conf/suite; did you mean paper?"),
        (["--suite", "paper", "only=[setting-9]"], "only names setting-9; did you mean setting"),
        (["--suite", "paper", "seeds=1"], "seeds must be an integer in [2, 100000] seeds or null, got 1"),
        (["--suite", "paper", "worker=2"], "worker is not a setting; did you mean workers?"),
    ],
)
def test_a_slip_on_the_command_line_is_told_in_one_line(words: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    told = capsys.readouterr().err
    assert text in told and told.count("\n") == 1


def test_help_shows_examples_and_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--suite", "--help"]) == 0
    told = capsys.readouterr().out
    assert all(f"  {name}: " in told for name in Settings.__dataclass_fields__)
    assert "full only=" in told


@pytest.mark.parametrize("name", sorted(path.stem for path in (suite.ROOT / "conf" / "suite").glob("*.yaml")))
def test_every_entrant_of_a_shipped_suite_can_be_played(name: str, tmp_path: Path) -> None:
    experiments = suite.load(name)
    assert experiments
    for key, (whose, experiment) in experiments.items():
        cells = plan(whose, key, experiment, settings(tmp_path, seeds=None))
        entrants = {cell.entrant for cell in cells}
        assert set(experiment.reported) <= entrants | set(experiment.groups), f"{key}: reported names nobody"
        assert len(entrants) == len(cells) >= 2


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("", "cannot be read as results"),
        ("[]", "is not a file of results"),
        (json.dumps({"protocol": 2}), "is not a file of results"),
        (json.dumps({"kind": findings.RESULT_KIND, "protocol": 1, "suite": "paper"}), "protocol is 1, this build's is 2; play it"),
    ],
)
def test_results_of_another_version_or_kind_are_refused_with_the_way_out(content: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=text):
        findings.read(path)
