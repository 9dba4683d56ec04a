"""Jobs of one command line stay apart, each says its number, and one table shows what all of them reached."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf
from rich.console import Console

import multirun
from settings import SettingsError
from tests.test_train import SMALL, TINY, call


def job(sweep: Path, number: int, words: list[str], evaluation: dict[str, Any] | None) -> Path:
    """Write the folder of a job as Hydra and a run leave it."""
    folder = sweep / f"{number}_some"
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "hydra.yaml").write_text(yaml.safe_dump({"hydra": {"job": {"num": number}}}))
    (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(words))
    if evaluation is not None:
        (folder / "evaluation.json").write_text(json.dumps(evaluation))
    return folder


def evaluation(policy: str, attainment: list[float], above: list[float] | None) -> dict[str, Any]:
    """A run's policy, and a baseline after it."""
    summary = {"slo_attainment": attainment, "latency_s_mean": [2.0, 1.0, 3.0]}
    other = {"summary": {"slo_attainment": [0.5, 0.5, 0.5], "latency_s_mean": [9.0, 9.0, 9.0]}, "difference": {}}
    difference = {} if above is None else {"paper": {"slo_attainment": above}}
    return {"policies": {policy: {"summary": summary, "difference": difference}, "single": other}}


def text(jobs: list[multirun.Job]) -> str:
    out = io.StringIO()
    Console(file=out, width=200).print(multirun.table(jobs))
    return out.getvalue()


def test_jobs_are_read_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number in (10, 2, 0):
        job(tmp_path, number, [f"seed={number}"], None)
    assert [found.number for found in multirun.read_jobs(tmp_path)] == [0, 2, 10]


def test_a_row_holds_what_sets_a_job_apart_and_its_own_policy(tmp_path: Path) -> None:
    job(tmp_path, 0, ["env=join", "seed=1"], evaluation("ppo_join", [0.9, 0.8, 0.95], [0.1, -0.05, 0.2]))
    job(tmp_path, 1, ["env=join", "seed=2"], evaluation("paper", [0.7, 0.6, 0.75], None))
    shown = text(multirun.read_jobs(tmp_path))
    assert "0.900 [0.800, 0.950]" in shown and "+0.100 [-0.050, +0.200]" in shown and "2.000 [1.000, 3.000]" in shown
    assert "seed=1" in shown and "env=join" not in shown and "ppo_join" in shown and "0.500" not in shown
    (line,) = (line for line in shown.splitlines() if "seed=2" in line)
    assert line.split("│")[5].strip() == "-", "paper is not compared with itself"


def test_a_list_that_sets_a_job_apart_is_shown_with_its_brackets(tmp_path: Path) -> None:
    """The table's markup takes [paper] for a style."""
    job(tmp_path, 0, ["agents.league.pool=[paper]"], evaluation("a", [0.9, 0.8, 0.95], [0.1, -0.05, 0.2]))
    job(tmp_path, 1, ["agents.league.pool=[single]"], evaluation("b", [0.9, 0.8, 0.95], [0.1, -0.05, 0.2]))
    shown = text(multirun.read_jobs(tmp_path))
    assert "agents.league.pool=[paper]" in shown and "agents.league.pool=[single]" in shown


def test_a_job_without_a_result_is_a_row_too_and_says_where_it_lies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = job(tmp_path, 0, ["seed=1"], None)
    job(tmp_path, 1, ["seed=2"], evaluation("single", [0.1, 0.1, 0.1], [0.0, 0.0, 0.0]))
    multirun.main([str(tmp_path)])
    out = capsys.readouterr().out
    assert "no result" in out and f"job 0 has no result: {folder}" in out and "job 1 has" not in out


def test_the_table_at_the_end_exits_with_2_when_a_job_has_no_result(tmp_path: Path) -> None:
    config = OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}})
    job(tmp_path, 0, ["seed=1"], evaluation("single", [0.1, 0.1, 0.1], [0.0, 0.0, 0.0]))
    multirun.ShowJobs().on_multirun_end(config)
    job(tmp_path, 1, ["seed=2"], None)
    with pytest.raises(SystemExit) as stop:
        multirun.ShowJobs().on_multirun_end(config)
    assert stop.value.code == 2


@pytest.mark.parametrize("words", [[], ["a", "b"], ["--help"], ["nowhere"]])
def test_a_folder_without_jobs_is_refused_in_one_line(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        multirun.main(words)
    err = capsys.readouterr().err
    assert stop.value.code == 2 and len(err.splitlines()) == 1 and "runs/sweeps/TIME" in err
    with pytest.raises(SettingsError):
        multirun.read_jobs(tmp_path)


def test_a_single_run_is_no_job_of_a_multirun(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = job(tmp_path, 0, ["seed=1"], None) / ".hydra" / "hydra.yaml"
    file.write_text("hydra:\n  job:\n    num: ???\n")  # as Hydra writes it for one run
    with pytest.raises(SystemExit) as stop:
        multirun.main([str(tmp_path)])
    assert stop.value.code == 2 and capsys.readouterr().err.count("holds no jobs of a multirun") == 1


def test_a_job_that_was_stopped_while_hydra_wrote_its_files_hides_no_other(tmp_path: Path) -> None:
    whole = job(tmp_path, 0, ["seed=1"], evaluation("ppo", [0.1, 0.1, 0.1], None)) / ".hydra" / "hydra.yaml"
    (job(tmp_path, 1, [], None) / ".hydra" / "overrides.yaml").unlink()
    text_of_it = whole.read_text()
    cut = job(tmp_path, 2, [], None) / ".hydra" / "hydra.yaml"
    for end in range(len(text_of_it) - 2):
        cut.write_text(text_of_it[:end])
        jobs = multirun.read_jobs(tmp_path)
        assert [(found.number, found.words) for found in jobs] == [(0, ("seed=1",)), (1, ())]
    cut.write_text('hydra: {job: {num: 2, name: "cut')
    assert len(multirun.read_jobs(tmp_path)) == 2


def test_a_policy_lies_in_the_jobs_folder_unless_the_command_line_says_otherwise(tmp_path: Path) -> None:
    config = OmegaConf.create({"output": "policies_trained", "seed": 1})
    assert multirun.own_output(config, ["seed=1"], tmp_path) == {"output": str(tmp_path), "seed": 1}
    for said in ("output=mine", "++output=mine"):
        assert multirun.own_output(config, ["seed=1", said], tmp_path) == config
    assert config.output == "policies_trained"


def test_lines_of_a_job_stand_whole_under_its_number() -> None:
    out = io.StringIO()
    labelled = multirun.Labelled(out, "job 3 | ")
    assert labelled.write("ppo: half ") == 10 and out.getvalue() == ""
    labelled.write("a line\nanother\nand")
    labelled.flush()
    assert out.getvalue() == "job 3 | ppo: half a line\njob 3 | another\n"
    assert not labelled.isatty() and labelled.writable()


@pytest.mark.parametrize(("launcher", "beside"), [("a.BasicLauncher", False), ("a.JoblibLauncher", True)])
def test_a_job_beside_others_keeps_its_words_in_its_folder(
    launcher: str, beside: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with multirun.announced(4, ["env=tiny", "seed=1"], launcher, tmp_path):
        print("a table")
        sys.stderr.write("half way\n")
    out, err = capsys.readouterr()
    assert err.splitlines() == ["job 4: env=tiny seed=1", "job 4 | half way" if beside else "half way"]
    kept = tmp_path / multirun.WORDS_FILE
    assert (kept.read_text(), out) == ("a table\n", "") if beside else (not kept.exists() and out == "a table\n")


@pytest.mark.parametrize("launcher", [[], ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]], ids=["basic", "joblib"])
def test_seeds_side_by_side_keep_their_policies_and_end_in_one_table(tmp_path: Path, launcher: list[str]) -> None:
    done = call("-m", "seed=1,2", "tracking=none", *SMALL, *TINY, *launcher, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (sweep,) = (tmp_path / "runs" / "sweeps").iterdir()
    for number, seed in enumerate((1, 2)):
        assert f"job {number}: seed={seed}" in done.stderr
        card = yaml.safe_load((sweep / f"{number}_wwwserve_ppo_s{seed}" / "ppo_wwwserve" / "card.yaml").read_text())
        assert card["seeds"]["train"] == seed
    assert not (tmp_path / "policies_trained").exists()
    assert "2 jobs: interquartile mean" in done.stdout
    assert [line.split()[1:4:2] for line in done.stdout.splitlines() if " seed=" in line] == [["0", "seed=1"], ["1", "seed=2"]]
    assert ("job 1 | ppo: 256 of 256" in done.stderr) == bool(launcher)


@pytest.mark.parametrize("launcher", [[], ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]], ids=["basic", "joblib"])
def test_a_refused_job_does_not_stop_the_others(tmp_path: Path, launcher: list[str]) -> None:
    words = ["-m", "env.kinds.reasoning.slo_s=1000,25", "agents=single", "tracking=none"]
    done = call(*words, *(word for word in SMALL if "slo_s" not in word), *launcher, cwd=tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "conf/env/wwwserve.yaml: " in done.stderr and "no result" in done.stdout and "job 0 has no result" in done.stdout
    assert any("slo_s=25" in line and "[" in line for line in done.stdout.splitlines())
