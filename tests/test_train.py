"""The command line does what it says, refuses every slip by name within a second, and the whole loop runs from Python."""

import math
import os
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from omegaconf import OmegaConf
from stand_ins import card_of, counting_onnx

import train as program
from agents.card import CARD_FILE, POLICY_FILE
from compose import CONF, compose, compose_each, resumed
from settings import SettingsError

ROOT = Path(__file__).parents[1]
WITHIN_S, IMPORTS_S, TRIES = 1.0, 0.45, 4
"""Longest wait for a refusal, and what importing Hydra and numba alone takes on a quiet machine."""
SMALL = [
    "env.horizon_s=60",
    "env.arrivals_until_s=30",
    "env.kinds.reasoning.slo_s=25",
    "env.providers.0.demand.schedule=[[30,1.0,1.6]]",
    "env.providers.0.demand.shift_s=0",
    "eval_seeds=2",
]
"""A minute of the default market: enough for every part to run."""
TINY = ["agents.networks=2", "agents.rollout=8", "agents.minibatch=32", "agents.steps=256", "agents.checkpoint_every=128"]
"""Two iterations of 128 agent-steps."""


def call(*words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run train.py as a user does, in a folder of its own, without a W&B key."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "HYDRA_"))}
    clean |= {"HOME": str(cwd), "XDG_CACHE_HOME": cache()} | environment
    return subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *words],
        check=False,
        cwd=cwd,
        env=clean,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
    )


def cache() -> str:
    """Name the folder of compiled rules, which a test must not make anew."""
    return os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")


SLIPS = {
    "agents.learning_rat=1": "command line: agents.learning_rat is not a setting; did you mean learning_rate?",
    "+agents.gama=1": "command line: agents.gama is not a setting; did you mean gamma?",
    "++market.duel_rat=1": "command line: market.duel_rat is not a setting; did you mean duel_rate?",
    "agent=ppo": "command line: agent is not a setting; did you mean agents?",
    "+sed=1": "command line: sed is not a setting; did you mean seed?",
    "env.reward.socia=0": "command line: env.reward.socia is not a setting; did you mean social?",
    "agents=pppo": "command line: agents=pppo names no file of conf/agents; did you mean ppo?",
    "env=wwwserv": "command line: env=wwwserv names no file of conf/env; did you mean wwwserve?",
    "tracking=wand": "command line: tracking=wand names no file of conf/tracking; did you mean wandb?",
    "market=null": "command line: market=null names no file of conf/market",
    "hydra/launchr=joblib": "command line: hydra/launchr is not a group; did you mean hydra/launcher?",
    "hydra.run.dirr=x": "command line: hydra.run.dirr is not a setting; did you mean dir?",
    "market.duel_rate=2": "command line: market.duel_rate must be a share in [0, 1], got 2",
    "market.duel_rate=nan": "command line: market.duel_rate must be a share in [0, 1], got .nan",
    "agents.steps=many": "command line: agents.steps must be an integer in [1, 1_000_000_000_000] agent-steps, got 'many'",
    "agents.steps=1e6": "got 1000000.0 (write 1000000)",
    "agents.hidden=[64,0]": "command line: agents.hidden[1] must be an integer in [1, 4096] units, got 0",
    "agents=mappo agents.critic_hidden=[]": "conf/agents/mappo.yaml: critic_hidden must name at least one layer",
    "agents=mappo agents.warmup=-1": "command line: agents.warmup must be an integer in [0, 1_000_000_000_000] agent-steps, got -1",
    "agents=league agents.league.pool=[papr]": "command line: agents.league.pool[0] is papr: there is no papr; did you mean paper?",
    "agents=league agents.league.pool=[paper,central]": "command line: agents.league.pool[1] is central, a scheduler in place of",
    "agents=league agents.league.seats=2": "command line: agents.league.seats must be a share in [0, 1], got 2",
    "agents=league agents.league.poool=[]": "command line: agents.league.poool is not a setting; did you mean pool?",
    "agents=recurrent agents.memory=0": "command line: agents.memory must be an integer in [1, 4096] units, got 0",
    "agents=mappo agents.memory=8": "command line: agents.memory is not a setting",
    "agents=mappo agents.vf_coef=1": "command line: agents.vf_coef is not a setting",
    "agents.start=nobody": "command line: agents.start is nobody, and there is no such trained policy",
    "agents.control_s=7": "command line: agents.control_s must be a multiple of tick_s = 1 that divides horizon_s = 900, got 7",
    "agents=league agents.control_s=0.5": "command line: agents.control_s must be a multiple of tick_s = 1",
    "env.providers=five": "command line: env.providers must be a list, each item a mapping, got 'five'",
    "env.providers=[]": "command line: env.providers must name at least one group of providers",
    "env.control_s=7": "conf/env/wwwserve.yaml: horizon_s must be a multiple of control_s = 7, got 900",
    "seed=-1": "command line: seed must be an integer in [0, 2_147_483_647], got -1",
    "seed=1_000_000": "command line: seed must differ from eval_first_seed, got 1000000 for both",
    "name=../up": "command line: name must be letters, digits, '.', '_' and '-', since it names a folder; got '../up'",
    "seed=${nowhere}": "command line: seed cannot be resolved: Interpolation key 'nowhere' not found",
    "~agents.gamma": "conf/agents/ppo.yaml: gamma is missing; it must be a share in [0, 1]",
    "~market": "conf/config.yaml: market is missing; it must be any value",
    "~markt": "command line: Could not delete from config. 'markt' does not exist",
    "seed=1,2": "command line: seed=1,2 stands for several runs; add -m, or write seed=[...] for a list",
    "seed": "command line: seed is not KEY=VALUE or GROUP=OPTION; see --help",
    "-m --cfg job": "command line: --multirun and --cfg exclude each other; say one of them; ",
    "=1": "command line: =1 is not KEY=VALUE or GROUP=OPTION; see --help",
    "agents.hidden=[1": "command line: agents.hidden=[1 cannot be read; quote it: KEY='VALUE'",
    "resume=nowhere": "command line: resume must be a checkpoint or a run's folder, and nowhere does not exist",
    "--seed": "command line: unrecognized arguments: --seed; settings are written KEY=VALUE, see --help",
    "-m agents=ppo,papr": "command line: agents=papr names no file of conf/agents; did you mean paper?",
    "-m market.duel_rate=0.1,7": "command line: market.duel_rate must be a share in [0, 1], got 7",
    "-m market.duel_rate=interval(0,1)": "is a continuous interval; write the values",
}


@pytest.mark.parametrize("words", SLIPS)
def test_a_slip_is_refused_by_name_within_a_second(words: str, tmp_path: Path) -> None:
    took_s, slow = math.inf, math.inf
    for _ in range(TRIES):  # what else runs can only add to either: the least is what the program and the machine need
        before_s = spent_s()
        done = call(*words.split(), cwd=tmp_path)
        took_s, slow = min(took_s, spent_s() - before_s), min(slow, slowness())
        if took_s < WITHIN_S * max(1.0, slow):
            break
    assert took_s < WITHIN_S * max(1.0, slow)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert SLIPS[words] in line
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def spent_s() -> float:
    """Give the processor time of all processes so far: what a user waits on a quiet machine."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def slowness() -> float:
    """Say how slow the machine is just now: a busy one makes even processor time longer."""
    before_s = spent_s()
    subprocess.run([sys.executable, "-c", "import hydra, numba"], check=True)
    return (spent_s() - before_s) / IMPORTS_S


def test_all_slips_of_all_groups_are_told_at_once(tmp_path: Path) -> None:
    done = call("market.duel_rate=x", "env.horizon_s=-1", "agents.stepps=1", "seed=x", "tracking.mode=on", cwd=tmp_path)
    keys = [line.split()[2] for line in done.stderr.splitlines()]
    assert done.returncode == 2 and sorted(keys) == ["agents.stepps", "env.horizon_s", "market.duel_rate", "seed", "tracking.mode"]


def test_a_slip_in_a_file_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "market").mkdir()
    values = yaml.safe_load((CONF / "market" / "paper.yaml").read_text()) | {"duel_rate": 3}
    (tmp_path / "market" / "mine.yaml").write_text(yaml.safe_dump(values))
    done = call("--config-dir", str(tmp_path), "market=mine", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (2, f"{tmp_path}/market/mine.yaml: duel_rate must be a share in [0, 1], got 3\n")


def test_nothing_heavy_is_loaded_before_the_settings_are_found_good() -> None:
    code = """
import sys, train
arguments = train._arguments([])
train.check_command_line(arguments, [])
heavy = {"torch", "stable_baselines3", "sb3_contrib", "wandb", "onnx", "onnxruntime", "matplotlib", "tensorboard"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_help_lists_every_group_and_option_with_a_line_each(tmp_path: Path) -> None:
    done = call("--help", cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == ""
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 150
    for group, what in program.GROUPS.items():
        assert f"{group}=... {what}" in lines
        for file in (CONF / group).glob("*.yaml"):
            (line,) = [
                line for line in lines if line.split()[:1] == [file.stem] and len(line.split()) > 1 and line.startswith("  ")
            ][:1]
            assert len(line.split()) > 2, f"{file}: its first line must be a comment that says what it is"
    assert "python train.py env=paper-2 agents=maskable_ppo" in done.stdout


def test_the_groups_of_the_help_are_those_of_the_config() -> None:
    defaults = yaml.safe_load((CONF / "config.yaml").read_text())["defaults"]
    assert [key for entry in defaults if isinstance(entry, dict) for key in entry if "hydra" not in key] == list(program.GROUPS)


def test_the_whole_config_is_printed_on_request(tmp_path: Path) -> None:
    done = call("--cfg", "job", "market.duel_rate=0.25", cwd=tmp_path)
    assert done.returncode == 0
    assert yaml.safe_load(done.stdout)["market"]["duel_rate"] == 0.25
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("agents", sorted(file.stem for file in (CONF / "agents").glob("*.yaml")))
@pytest.mark.parametrize("tracking", sorted(file.stem for file in (CONF / "tracking").glob("*.yaml")))
def test_every_shipped_choice_is_good(agents: str, tracking: str) -> None:
    composed = compose([f"agents={agents}", f"tracking={tracking}"])
    plan = program.check(composed.values, composed.files)
    assert plan.name == f"{agents}_wwwserve" and plan.agents.name == agents and plan.tracking.name == tracking


def test_a_league_refuses_a_policy_that_remembers(tmp_path: Path) -> None:
    folder, content = tmp_path / "counting", counting_onnx()
    folder.mkdir()
    (folder / POLICY_FILE).write_bytes(content)
    card = {**card_of(content), "memory": {"units": 1, "control_s": 20.0}}
    (folder / CARD_FILE).write_text(yaml.safe_dump(card), encoding="utf-8")
    composed = compose(["agents=league", f"agents.league.pool=[paper,{folder}]"])
    with pytest.raises(SettingsError, match=r"league\.pool\[1\] is .*counting, which remembers; .*; name a policy without one"):
        program.check(composed.values, composed.files)


@pytest.mark.parametrize("env", sorted(file.stem for file in (CONF / "env").glob("*.yaml")))
def test_every_shipped_scenario_is_good_and_named_like_its_file(env: str) -> None:
    composed = compose([f"env={env}"])
    assert program.check(composed.values, composed.files).scenario.name == env


def test_wandb_variables_stand_between_file_and_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def project(*words: str) -> Any:
        return OmegaConf.to_container(compose(words).values, resolve=True)["tracking"]["project"]  # type: ignore[index, call-overload]

    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    assert project() == "wwwserve"
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    assert project() == "theirs" and project("tracking.project=mine") == "mine"


def test_a_multirun_checks_each_choice_once_not_each_combination() -> None:
    words = ["seed=range(0,50)", "agents=ppo,paper", "market.duel_rate=0.1,0.2,0.3"]
    seen = [(c.values.seed, c.values.agents.name, c.values.market.duel_rate) for c in compose_each(words, multirun=True)]
    assert len(seen) == 1 + 49 + 1 + 2
    assert {agents for _, agents, _ in seen} == {"ppo", "paper"} and {rate for _, _, rate in seen} == {0.1, 0.2, 0.3}


def test_resume_brings_back_the_settings_of_the_run_and_new_ones_win(tmp_path: Path) -> None:
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "overrides.yaml").write_text("- seed=3\n- +x=1\n- agents=maskable_ppo\n- resume=older\n")
    words = ["++x=2", "seed=4", f"resume={tmp_path}"]
    assert resumed(words) == ["agents=maskable_ppo", *words]
    (tmp_path / "checkpoint.npz").write_bytes(b"")
    assert resumed([f"resume={tmp_path}/checkpoint.npz"])[0] == "seed=3"
    assert resumed(["seed=1"]) == ["seed=1"] and resumed(["resume=null"]) == ["resume=null"]


def test_a_baseline_is_evaluated_and_never_trained(tmp_path: Path) -> None:
    done = call("agents=fixed", "tracking=csv", "seed=5", *SMALL, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "runs" / "wwwserve" / "fixed").iterdir()
    assert folder.name.endswith("_s5")
    names = {path.name for path in folder.iterdir()}
    assert {"config.yaml", "evaluation.json", "report.png", "metrics.csv", ".hydra"} <= names
    assert not any(name.endswith((".log", ".npz")) for name in names)
    assert not (tmp_path / "policies_trained").exists()
    for policy in ("fixed", "single", "paper", "central", "uniform"):
        assert policy in done.stdout
    saved = yaml.safe_load((folder / "config.yaml").read_text())
    assert saved["seed"] == 5 and saved["env"]["horizon_s"] == 60


@pytest.mark.parametrize("launcher", [[], ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]], ids=["basic", "joblib"])
def test_a_multirun_runs_every_choice(tmp_path: Path, launcher: list[str]) -> None:
    done = call("-m", "agents=single,uniform", "tracking=none", *SMALL, *launcher, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (sweep,) = (tmp_path / "runs" / "sweeps").iterdir()
    jobs = sorted(path.name for path in sweep.iterdir() if path.is_dir())
    assert jobs == ["0_wwwserve_single_s0", "1_wwwserve_uniform_s0"]
    assert all((sweep / job / "evaluation.json").exists() for job in jobs)
    assert not list(tmp_path.rglob("*.log"))


def test_an_episode_in_which_nothing_falls_due_is_refused_in_one_line(tmp_path: Path) -> None:
    done = call("agents=single", "tracking=none", *SMALL, "env.kinds.reasoning.slo_s=1000", cwd=tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.startswith("conf/env/wwwserve.yaml: ") and len(done.stderr.splitlines()) == 1


def run(folder: Path, *words: str) -> program.Result:
    """Train from Python."""
    composed = compose(["tracking=none", f"output={folder / 'policies'}", *SMALL, *TINY, *words])
    return program.train(composed.values, folder, composed.files)


def weights(result: program.Result) -> bytes:
    assert result.policy is not None
    return (result.policy / "policy.onnx").read_bytes()


@pytest.mark.parametrize("agents", ["ppo", "maskable_ppo", "mappo", "league", "recurrent"])
def test_the_whole_loop_from_python(tmp_path: Path, agents: str) -> None:
    pytest.importorskip("envs.wwwserve.sb3")
    result = run(tmp_path, f"agents={agents}")
    assert result.agent_steps == 256 and result.wall_s > 0 and result.name == f"{agents}_wwwserve"
    assert result.policy == tmp_path / "policies" / result.name
    assert 0 <= result.score <= 1
    assert set(result.evaluation.played) == {result.name, "single", "paper", "paper_central", "central", "uniform"}
    card = yaml.safe_load((result.policy / "card.yaml").read_text())
    assert card["scores"]["wwwserve"]["slo_attainment"][result.name][0] == pytest.approx(result.score, abs=1e-6)
    assert card["training"]["agent_steps"] == 256 and card["config"]["agents"]["name"] == agents
    assert {path.name for path in tmp_path.iterdir()} >= {"checkpoint.npz", "config.yaml", "report.png", "evaluation.json"}


@pytest.mark.parametrize("agents", ["ppo", "mappo", "league", "recurrent"])
def test_a_resumed_run_of_the_real_market_equals_one_that_never_stopped(tmp_path: Path, agents: str) -> None:
    pytest.importorskip("envs.wwwserve.sb3")
    words = [f"agents={agents}", "agents.schedule=constant"]
    whole = run(tmp_path / "whole", *words)
    part = run(tmp_path / "part", *words, "agents.steps=128")
    rest = run(tmp_path / "rest", *words, f"resume={tmp_path / 'part'}")
    assert weights(rest) == weights(whole) != weights(part)
    assert rest.agent_steps == whole.agent_steps
    for name in whole.evaluation.played[whole.name].metrics:
        metrics = [result.evaluation.played[result.name].metrics[name] for result in (whole, rest)]
        assert np.array_equal(*metrics, equal_nan=True), name


def test_the_default_command_trains_offline_and_leaves_no_stray_files(tmp_path: Path) -> None:
    pytest.importorskip("envs.wwwserve.sb3")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    done = call(*SMALL, *TINY, cwd=tmp_path, TMPDIR=str(temporary))
    assert done.returncode == 0, done.stderr
    assert "W&B: offline; to upload this run later: wandb login && wandb sync" in done.stderr
    assert re.search(r"ppo: 128 of 256 agent-steps +[\d,]+ agent-steps/s", done.stderr)
    assert "Traceback" not in done.stderr and "Warning" not in done.stderr
    assert list(temporary.iterdir()) == []
    assert {path.name for path in tmp_path.iterdir()} - {"temporary", ".cache", ".config"} == {"runs", "policies_trained"}
    assert {path.name for path in (tmp_path / "policies_trained" / "ppo_wwwserve").iterdir()} == {"policy.onnx", "card.yaml"}


def test_a_run_is_resumed_by_its_path_alone(tmp_path: Path) -> None:
    pytest.importorskip("envs.wwwserve.sb3")
    first = call("tracking=csv", "seed=2", "name=mine", *SMALL, *TINY, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    (folder,) = (tmp_path / "runs" / "wwwserve" / "ppo").iterdir()
    again = call(f"resume={folder}", "agents.steps=384", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    card = yaml.safe_load((tmp_path / "policies_trained" / "mine" / "card.yaml").read_text())
    assert card["training"]["agent_steps"] == 384 and card["seeds"]["train"] == 2
    assert "resume=" not in card["reproduce"]


@pytest.mark.parametrize(
    ("content", "said"), [(b"", "is not a whole checkpoint"), (b"PK\x03\x04" + b"x" * 99, "is not a whole checkpoint")]
)
def test_a_damaged_checkpoint_is_refused_in_one_line(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "checkpoint.npz").write_bytes(content)
    done = call(f"resume={tmp_path}", "tracking=none", *SMALL, *TINY, cwd=tmp_path)
    assert done.returncode == 2 and said in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_failed_run_is_marked_so_in_its_tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[bool] = []

    class Tracker:
        id = where = None

        def finish(self, *, failed: bool = False) -> None:
            ended.append(failed)

    def broken(*_: object) -> program.Result:
        raise SettingsError

    monkeypatch.setattr(program, "_open_tracker", lambda *_: Tracker())
    monkeypatch.setattr(program, "_run", broken)
    with pytest.raises(SettingsError):
        run(tmp_path)
    assert ended == [True]
