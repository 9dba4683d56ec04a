"""Libraries that cannot live beside each other train on the market, each in its own environment; `make adapters` makes those.

The programs are the examples of docs/training.md. Their market refuses masked actions, so one that ends has used the masks.
"""

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.test_docs import LONG, Example

ROOT = Path(__file__).parents[1]
NOTE = re.compile(r"make test-adapters runs it in (\.venv-\w+)")
EXAMPLES = {str(example): example for example in LONG if NOTE.search(example.note[1])}
ENDS = {"rllib": r"runners: 2 loss: -?\d", "tensordict": r"agent-steps: 256 loss: -?\d", "benchmarl": r"frames: 64$"}
"""A word of each example, and its last line when it has learnt."""
CLUSTER = """
import subprocess, sys
import ray
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
cluster.add_node(num_cpus=1)
cluster.wait_for_nodes()
try:
    ray.init(address=cluster.address)
    assert [node["Resources"]["CPU"] for node in ray.nodes()] == [1.0, 1.0]
    ray.shutdown()
    address = f"hydra.launcher.ray.init.address={cluster.address}"
    done = subprocess.run([sys.executable, *sys.argv[1:], "hydra/launcher=ray_cluster", address])
finally:
    cluster.shutdown()
sys.exit(done.returncode)
"""


def run(venv: str, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run an environment's python in a folder of its own; without the environment, skip and say how it is made."""
    python = ROOT / venv / "bin" / "python"
    if not (ROOT / venv / ".adapter").exists():
        pytest.skip(f"there is no whole {venv}; make adapters")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "HYDRA_", "RAY_"))}
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    more = {"HOME": str(folder), "XDG_CACHE_HOME": cache, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}
    return subprocess.run(
        [str(python), *words], cwd=folder, env=clean | more, capture_output=True, text=True, timeout=600, check=False
    )


def library(example: Example) -> str:
    """The word by which an example is known."""
    return next(word for word in ENDS if f"from {word}" in example.text or f".{word}." in example.text)


def test_every_adapter_has_an_example() -> None:
    assert sorted(map(library, EXAMPLES.values())) == ["benchmarl", "rllib", "tensordict"]


@pytest.mark.adapters
@pytest.mark.parametrize("example", EXAMPLES.values(), ids=str)
def test_a_library_trains_on_the_market_with_its_masks(example: Example, tmp_path: Path) -> None:
    note = NOTE.search(example.note[1])
    assert note
    (tmp_path / "example.py").write_text(example.text, encoding="utf-8")
    done = run(note[1], tmp_path, "example.py")
    assert done.returncode == 0, done.stderr
    assert re.search(ENDS[library(example)], done.stdout.strip().splitlines()[-1])


@pytest.mark.adapters
def test_the_market_refuses_an_action_that_ignores_the_masks(tmp_path: Path) -> None:
    example = next(example for example in EXAMPLES.values() if "from benchmarl" in example.text)
    note = NOTE.search(example.note[1])
    assert note
    without = "    def action_mask_spec(self, env):\n        return None\n\n"
    blind = example.text.replace("    def has_state", f"{without}    def has_state")
    (tmp_path / "example.py").write_text(blind, encoding="utf-8")
    done = run(note[1], tmp_path, "example.py")
    assert done.returncode != 0 and "masked" in done.stderr


@pytest.mark.adapters
def test_jobs_of_a_multirun_run_on_two_nodes_of_ray(tmp_path: Path) -> None:
    (tmp_path / "cluster.py").write_text(CLUSTER)
    words = ["-m", "env=tiny,join", "seed=1", "agents=single", "eval_seeds=2", "tracking=none"]
    done = run(".venv-ray", tmp_path, "cluster.py", str(ROOT / "train.py"), *words)
    assert done.returncode == 0, done.stderr
    (sweep,) = (tmp_path / "runs" / "sweeps").iterdir()
    jobs = sorted(path.name for path in sweep.iterdir() if path.is_dir())
    assert jobs == ["0_tiny_single_s1", "1_join_single_s1"]
    assert all((sweep / job / "evaluation.json").exists() for job in jobs)
    assert "2 jobs: interquartile mean" in done.stdout and "env=join" in done.stdout
