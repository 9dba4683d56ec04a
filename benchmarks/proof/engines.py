"""Real vLLM servers on a machine without a GPU, each on a core of its own, for as long as they are needed."""

import asyncio
import subprocess
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from benchmarks.measure import ROOT
from live_bridge.backends.launch import Launched, command
from live_bridge.backends.probe import HttpProbe, ProbeError, served_load, served_version
from live_bridge.backends.sweep import together
from live_bridge.clock import Clock
from live_bridge.fleet import free_ports
from live_bridge.http.client import Client
from settings import SettingsError, Slip

INTERPRETER = ROOT / ".venv-vllm" / "bin" / "python"
NAME = "m"
"""Under which every engine serves its model: any of them may execute a request."""
HEALTHY_S = 600.0
"""s on the wall that an engine has to be healthy, on a busy machine."""
IDLE_S = 90.0
"""s on the wall that an engine has to be idle after a play: its users have left by then."""
LOOK_S = 0.2
PACE_BATCH, PACE_PROMPT, PACE_TOKENS = 8, 32, 48
"""What the pace of an engine is measured by: requests at once, and tokens of each."""
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "TORCHDYNAMO_DISABLE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_WORKER_MULTIPROC_METHOD": "fork",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "OMP_NUM_THREADS": "1",
}
"""Nothing is fetched, told to anybody, or compiled; 1 GB of memory for the KV cache, of which a model may take less. And no worker
process beside the engine's own: the two would wait for each other in loops, which takes a core from everybody else
(vllm/platforms/cpu.py makes one of `uni` unless V1 multiprocessing is off)."""
COMMON = ("--served-model-name", NAME, "--enforce-eager")


class Model(NamedTuple):
    """What an engine serves."""

    making: tuple[str, ...]  # words of live_bridge.models, without --out
    serving: tuple[str, ...]  # words of vLLM
    core: int


def made(models: Sequence[Model], interpreter: Path, folder: Path) -> list[Path]:
    """Make the models that are not there yet; returns their folders, in the order of `models`.

    errors   SettingsError without an interpreter that has vLLM, or when a model cannot be made
    """
    if not interpreter.is_file():
        raise SettingsError(Slip("command line", "--interpreter", f"must be a Python that has vLLM, got {interpreter}: make vllm"))
    places = [folder / "-".join(model.making).replace("--", "") for model in models]
    for model, place in zip(models, places, strict=True):
        if not (place / "tokenizer_config.json").is_file():  # the last file to be written
            words = [str(interpreter), "-m", "live_bridge.models", *model.making, "--out", str(place)]
            done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SettingsError(Slip("command line", "--interpreter", f"makes no model:\n{done.stderr.strip()[-2000:]}"))
    return places


@asynccontextmanager
async def serving(
    models: Sequence[Model], interpreter: Path, folder: Path, client: Client, tell: Callable[[str], None]
) -> AsyncIterator[list[str]]:
    """Serve models at once, each behind a URL of its own; they are gone when this is left.

    folder   takes the models and a log an engine
    tell     told how far they are
    errors   LaunchError when one does not come up
    """
    urls = [f"http://127.0.0.1:{port}" for port in free_ports(len(models))]
    async with AsyncExitStack() as stack:
        started = []
        for number, (model, place) in enumerate(zip(models, made(models, interpreter, folder), strict=True)):
            served = command(str(interpreter), str(place), urls[number], [*COMMON, *model.serving])
            bound = ENVIRONMENT | {"VLLM_CPU_OMP_THREADS_BIND": str(model.core)}
            log = folder / f"engine-{number}.log"
            engine = Launched(["taskset", "--cpu-list", str(model.core), *served], urls[number], log, bound)
            await engine.start()
            stack.push_async_callback(engine.stop)
            started.append(engine)
        await asyncio.gather(*(engine.ready(client, HEALTHY_S, tell) for engine in started))
        yield urls


async def until_idle(client: Client, urls: Sequence[str]) -> None:
    """Wait until no engine has anything to do.

    errors   ProbeError when one still works after IDLE_S
    """
    clock = Clock()
    while any(load.running or load.waiting for load in [await served_load(client, url, [], clock) for url in urls]):
        if clock.now() > IDLE_S:
            raise ProbeError(f"{', '.join(urls)}: still at work {IDLE_S:g} s after the end of a play; start again")
        await asyncio.sleep(LOOK_S)


async def pace_ms(client: Client, urls: Sequence[str]) -> list[float]:
    """Time an iteration (ms) of each idle engine while all of them decode a full batch: what a drift of the host shows in."""
    clock = Clock()
    probes = [HttpProbe(client, url, NAME, clock, []) for url in urls]
    asked = [asyncio.gather(*(probe.ask(PACE_PROMPT, PACE_TOKENS) for _ in range(PACE_BATCH))) for probe in probes]
    return [round(1e3 * together(timings)[0], 2) for timings in await asyncio.gather(*asked)]


async def version(client: Client, url: str) -> str:
    """What an engine says it is."""
    return await served_version(client, url, [])
