"""What steers a node: swapped under load, failing in service, or made to do harm; no request is the worse for it."""

import asyncio
import json
import os
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from agents.card import CARD_FILE, POLICY_FILE, PolicyError
from live_bridge import pilot, trial
from live_bridge.pilot import fenced
from tests.live_bridge import policies
from tests.live_bridge.towns import Engine, Town, calm, town

READER = """
import os, sys
def note(event, args):
    if event in {"pickle.find_class", "marshal.loads"} and event.startswith("pickle"):
        with open(os.environ["TRACE"], "a") as file:
            file.write(f"{event} {args[1:]}\\n")
sys.addaudithook(note)
"""
"""sitecustomize.py of a node that is watched: it writes down what is unpickled."""
FORBIDDEN = set(
    "torch numba llvmlite stable_baselines3 sb3_contrib gymnasium pettingzoo hydra envs train onnx cloudpickle dill joblib shelve"
    " pandas scipy matplotlib wandb rich httpx fastapi".split()
)


class Users:
    """Users who ask a node all the time."""

    def __init__(self, place: Town, count: int = 4) -> None:
        self.place = place
        self.codes: Counter[int | str] = Counter()
        self.slowest_s = 0.0
        self._tasks = [asyncio.create_task(self._ask_forever()) for _ in range(count)]

    async def _ask_forever(self) -> None:
        while True:
            began_s = time.monotonic()
            code, _, _ = await self.place.ask(0)
            self.codes[code] += 1
            self.slowest_s = max(self.slowest_s, time.monotonic() - began_s)
            await asyncio.sleep(0.01)

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        for outcome in await asyncio.gather(*self._tasks, return_exceptions=True):
            assert isinstance(outcome, asyncio.CancelledError), outcome


async def snapshot(place: Town) -> dict[str, Any]:
    """What the live page is told."""
    with await place.client.request("GET", place.urls[0] + "/live/events", first_byte_s=10.0) as reply:
        raw = b""
        async for chunk in reply:
            raw += chunk
            found = re.search(rb"^id: \d+\ndata: (\{.*\})\n\n", raw, re.MULTILINE)
            if found:
                return dict(json.loads(found[1]))
    raise AssertionError(f"the page was told nothing: {raw[:200]!r}")


def log_of(place: Town) -> list[dict[str, Any]]:
    """What a node has logged."""
    return [json.loads(line) for line in (place.homes[0].parent / "output.log").read_text().splitlines()]


async def reloaded(place: Town, result: str, change: Callable[[], Any]) -> None:
    """Change something, have the node read it, and wait until it has, with the `result` that is expected."""
    counted = {each: await place.metric(f'wwwserve_reloads_total{{result="{each}"}}') for each in ("done", "refused")}
    change()
    os.kill(place.fleet.pids()["n0"], signal.SIGHUP)

    async def read() -> bool:
        now = {each: await place.metric(f'wwwserve_reloads_total{{result="{each}"}}') for each in counted}
        assert now == counted or now == counted | {result: counted[result] + 1}, f"must be {result}"
        return now != counted

    await place.until(read)


def set_in(config: Path, **changes: Any) -> None:
    """Change settings in a node's file."""
    values = yaml.safe_load(config.read_text())
    config.write_text(yaml.safe_dump(values | changes))


def torn(folder: Path) -> None:
    """Leave half of a policy, as a copy does that is under way."""
    path = folder / POLICY_FILE
    path.write_bytes(path.read_bytes()[:200])


def test_policy_and_settings_are_swapped_a_hundred_times_under_load_and_no_request_fails(tmp_path: Path) -> None:
    first = policies.folder_of(tmp_path / "first", policies.well((3, 0, 2)))
    second = policies.folder_of(tmp_path / "second", policies.well((4, 1, 3)))
    broken = policies.folder_of(tmp_path / "broken")
    torn(broken)

    async def scene() -> None:
        async with Engine() as engine, town(tmp_path, [engine], policy=str(first), **calm()) as place:
            config = place.homes[0].parent / "config.yaml"
            users = Users(place)
            for k in range(100):
                if k % 10 == 9:  # something that is bad: a torn policy, a typo, a value, no file at all
                    bad = [{"policy": str(broken)}, {"polcy": "paper"}, {"slo_s": "fast"}, {"policy": "nowhere"}][k // 10 % 4]
                    good = config.read_text()
                    await reloaded(place, "refused", lambda bad=bad: set_in(config, **bad))
                    config.write_text(good)
                elif k % 2:  # another folder, and a setting that needs no new start
                    await reloaded(place, "done", lambda k=k: set_in(config, policy=str(second), duels={"judge": k % 4 == 1}))
                else:  # other content in the folder in force
                    levels = (3, 0, k // 4 % 2)
                    await reloaded(
                        place,
                        "done",
                        lambda levels=levels: (
                            policies.folder_of(first, policies.well(levels)),
                            set_in(config, policy=str(first)),
                        ),
                    )
            await users.stop()
            assert set(users.codes) == {200} and users.codes[200] >= 100
            assert await place.metric('wwwserve_reloads_total{result="refused"}') == 10
            assert await place.metric('wwwserve_reloads_total{result="done"}') == 90
            sys.stdout.write(f"\n100 swaps, {users.codes[200]} requests, the slowest {users.slowest_s * 1e3:.0f} ms\n")

    asyncio.run(scene())


async def shown(place: Town, *words: str) -> bool:
    """Whether the live page shows an event with these words."""
    return any(all(word in event["text"] for word in words) for event in (await snapshot(place))["events"])


def test_what_is_bad_is_refused_and_said_and_the_old_stays_in_force(tmp_path: Path) -> None:
    good = policies.folder_of(tmp_path / "good", policies.well((3, 0, 2)))

    async def scene() -> None:
        async with Engine() as engine, town(tmp_path, [engine], policy=str(good), **calm()) as place:
            config = place.homes[0].parent / "config.yaml"
            text = config.read_text()
            bad = {
                "sick": policies.folder_of(tmp_path / "sick", policies.sick()),
                "bomb": policies.folder_of(tmp_path / "bomb", policies.bomb()),
            }
            for name, folder in bad.items():
                await reloaded(place, "refused", lambda folder=folder: set_in(config, policy=str(folder)))
                state = await place.get("/market/v1/state")
                assert state["policy"] == "good"
                await place.until(lambda name=name: shown(place, "not reloaded: ", name))
                [*_, last] = [line for line in log_of(place) if line["what"] == "not reloaded"]
                assert (last["level"], name in last["reason"], "\n" in last["reason"]) == ("warning", True, False)
                assert (await place.ask(0))[0] == 200
            config.write_text(text)
            before = (await place.get("/market/v1/state"))["actions"]["3-0-2"]

            async def still_decides() -> bool:
                return bool((await place.get("/market/v1/state"))["actions"]["3-0-2"] > before + 1)

            await place.until(still_decides)
            await reloaded(place, "done", lambda: set_in(config, policy="paper", slo_s=100, listen="127.0.0.1:1"))
            assert (await place.get("/market/v1/state"))["policy"] == "paper"
            await place.until(lambda: shown(place, "reloaded: policy paper", "only a new start changes listen, slo_s"))

    asyncio.run(scene())


def test_a_policy_that_never_answers_is_refused_on_trial_and_the_node_goes_on_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = policies.folder_of(tmp_path / "endless", policies.endless())
    monkeypatch.setattr(trial, "PATIENCE_S", 1.5)

    async def scene() -> float:
        worst_s, before_s = 0.0, time.monotonic()
        trying = asyncio.create_task(trial.Trials().try_out(str(folder)))
        while not trying.done():
            await asyncio.sleep(0.01)
            now_s = time.monotonic()
            worst_s, before_s = max(worst_s, now_s - before_s), now_s
        with pytest.raises(PolicyError, match=r"endless has (not answered within 1.5 s on trial|ended its trial with status -\d+)"):
            await trying
        return worst_s

    assert asyncio.run(scene()) < 0.5


MOODS = [
    (policies.NOT_FINITE, "not_finite"),
    (policies.SHORT, "wrong_shape"),
    (policies.STALLED, "stalled"),
    (policies.FAILING, "refused"),
]


def test_a_policy_that_fails_in_service_is_replaced_by_the_papers_rules_until_it_is_well(tmp_path: Path) -> None:
    folder = policies.folder_of(tmp_path / "moody", policies.moody())

    def usage(share: float) -> Callable[[], str]:
        return lambda: f"vllm:num_requests_running 0\nvllm:num_requests_waiting 0\nvllm:kv_cache_usage_perc {share}\n"

    async def scene() -> None:
        async with Engine() as engine, town(tmp_path, [engine], policy=str(folder), **calm()) as place:
            users = Users(place)
            for share, failure in MOODS:
                failed = f'wwwserve_policy_failures_total{{reason="{failure}"}}'
                counted, asked = await place.metric(failed), users.codes[200]
                engine.metrics = usage(share)

                async def steered(failed: str = failed, counted: float = counted, asked: int = asked) -> bool:
                    shown = await snapshot(place)
                    return (
                        await place.metric(failed) >= counted + 1 and shown["me"]["brain"] == "paper" and users.codes[200] > asked
                    )

                if failure != "stalled":  # that one's late answers are taken
                    await place.until(steered)
                else:
                    await place.until(lambda failed=failed, counted=counted: grown(place, failed, counted + 1))
                engine.metrics = usage(policies.WELL)
                decided = await place.metric('wwwserve_policy_decisions_total{brain="policy"}')
                await place.until(
                    lambda decided=decided: grown(place, 'wwwserve_policy_decisions_total{brain="policy"}', decided + 2)
                )
                await place.until(lambda: steers(place, "policy"))
            await users.stop()
            assert set(users.codes) == {200}
            sys.stdout.write(f"\n{users.codes[200]} requests meanwhile, the slowest {users.slowest_s * 1e3:.0f} ms\n")

    asyncio.run(scene())


async def steers(place: Town, brain: str) -> bool:
    """Whether the live page, which is a second old at most, says that `brain` steers."""
    return bool((await snapshot(place))["me"]["brain"] == brain)


async def grown(place: Town, metric: str, least: float) -> bool:
    return await place.metric(metric) >= least


HARMFUL: dict[str, Callable[[Path], Any]] = {
    "pickle": lambda folder: policies.folder_of(folder, policies.pickled(folder / "trace")),
    "pickle_with_another_card": lambda folder: (folder / POLICY_FILE).write_bytes(policies.pickled(folder / "trace")),
    "python_in_the_card": lambda folder: (folder / CARD_FILE).write_text(
        f"!!python/object/apply:os.system ['touch {folder}/trace']"
    ),
    "names_in_the_card": lambda folder: (folder / CARD_FILE).write_text("format: !!python/name:os.system\n"),
    "laughs_in_the_card": lambda folder: (folder / CARD_FILE).write_text(laughs()),
    "depth_in_the_card": lambda folder: (folder / CARD_FILE).write_text("[" * 10_000),
    "list_as_card": lambda folder: (folder / CARD_FILE).write_text("- 1\n"),
    "zip": lambda folder: (folder / POLICY_FILE).write_bytes(b"PK\x03\x04" + bytes(1000)),
    "large_file": lambda folder: os.truncate(folder / POLICY_FILE, 1 << 40),
    "large_card": lambda folder: os.truncate(folder / CARD_FILE, 1 << 40),
    "absolute_path": lambda folder: policies.folder_of(folder, policies.outside("/etc/passwd")),
    "path_upwards": lambda folder: policies.folder_of(folder, policies.outside("../../../../etc/passwd")),
    "path_beside": lambda folder: policies.folder_of(folder, policies.outside("weights.bin")),
    "weights_that_are_no_numbers": lambda folder: policies.folder_of(folder, policies.sick()),
    "memory": lambda folder: policies.folder_of(folder, policies.bomb()),
    "pipe": lambda folder: ((folder / POLICY_FILE).unlink(), os.mkfifo(folder / POLICY_FILE)),
    "folder": lambda folder: ((folder / CARD_FILE).unlink(), (folder / CARD_FILE).mkdir()),
    "device": lambda folder: ((folder / POLICY_FILE).unlink(), (folder / POLICY_FILE).symlink_to("/dev/zero")),
    "nothing": lambda folder: (folder / POLICY_FILE).write_bytes(b""),
}


def laughs() -> str:
    """YAML of a kilobyte that is a gigabyte when it is written out."""
    lines = ["a0: &a0 [ha, ha, ha, ha, ha, ha, ha, ha, ha]"]
    lines += [f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]" for k in range(1, 10)]
    return "\n".join([*lines, "format: *a9"]) + "\n"


@pytest.mark.parametrize("kind", HARMFUL)
def test_files_that_mean_harm_are_refused(tmp_path: Path, kind: str) -> None:
    folder = policies.folder_of(tmp_path / "harm")
    (folder / "weights.bin").write_bytes(bytes(1 << 16))
    assert fenced(str(folder), 5.0, 0).name == "harm"
    HARMFUL[kind](folder)
    began_s = time.monotonic()
    with pytest.raises(PolicyError) as refused:
        fenced(str(folder), 5.0, 0)
    assert time.monotonic() - began_s < 6.0  # on a busy machine
    assert not (folder / "trace").exists()
    assert len(str(refused.value)) < 1000 and "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["policy.pkl", "policy.zip", "model.pt"])
def test_a_policy_of_another_kind_is_not_even_looked_at(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(policies.pickled(tmp_path / "trace"))
    for text in (str(path), str(tmp_path)):
        with pytest.raises(PolicyError, match=r"there is no|card\.yaml: does not exist"):
            fenced(text, 5.0, 0)
    assert not (tmp_path / "trace").exists()


def test_a_serving_node_loads_neither_learners_nor_compilers_and_unpickles_nothing(tmp_path: Path) -> None:
    (tmp_path / "watch").mkdir()
    (tmp_path / "watch" / "sitecustomize.py").write_text(READER)
    trace = tmp_path / "unpickled"
    path = os.pathsep.join([str(tmp_path / "watch"), str(Path(__file__).parents[2])])
    folder = policies.folder_of(tmp_path / "tiny")

    async def scene() -> None:
        async with Engine() as engine, town(tmp_path, [engine], policy=str(folder)) as place:
            watched = place.members[0]
            words = (watched.words[0], "-X", "importtime", *watched.words[1:])
            place.members[0] = watched._replace(words=words, environment={"PYTHONPATH": path, "TRACE": str(trace)})
            await place.tell(0, signal.SIGTERM)
            watched.log.unlink()
            await place.revive(0)
            for body in ({}, {"stream": True}):
                assert (await place.ask(0, **body))[0] == 200
            await snapshot(place)
            await reloaded(place, "done", lambda: policies.folder_of(folder, policies.well((4, 0, 2))))
            await place.tell(0, signal.SIGTERM)

    asyncio.run(scene())
    log = (tmp_path / "n0" / "output.log").read_text()
    loaded = {line.rpartition("|")[2].strip() for line in log.splitlines() if line.startswith("import time:")}
    assert {"live_bridge.node", "agents.policy", "onnxruntime", "live_bridge.ledger.sqlite"} <= loaded, "nothing was watched"
    assert {name.split(".")[0] for name in loaded} & FORBIDDEN == set()
    assert not trace.exists(), trace.read_text()


def test_the_watch_over_unpickling_sees_it(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(READER)
    (tmp_path / "p").write_bytes(policies.pickled(tmp_path / "trace"))
    done = os.spawnve(
        os.P_WAIT,
        sys.executable,
        [sys.executable, "-c", f"import pickle; pickle.load(open({str(tmp_path / 'p')!r}, 'rb'))"],
        {**os.environ, "PYTHONPATH": str(tmp_path), "TRACE": str(tmp_path / "seen")},
    )
    assert done == 0 and "system" in (tmp_path / "seen").read_text() and (tmp_path / "trace").exists()


def test_the_names_of_failures_are_those_of_the_metrics() -> None:
    from live_bridge.metrics import FAILURES

    source = Path(pilot.__file__).read_text()
    assert {failure for _, failure in MOODS} <= set(FAILURES)
    assert all(f'"{failure}"' in source for failure in FAILURES)
