"""A journal of real nodes under load leads to the same commands, decisions and balances again; one changed digit is found out."""

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml

from agents.card import PolicyError
from live_bridge.brain import Brain
from live_bridge.config import profile_named, terms_named
from live_bridge.journal import Journal, read
from live_bridge.ledger.audit import Auditor
from live_bridge.ledger.journal import from_json
from live_bridge.replay import FORMAT, header, replay, setup_of
from live_bridge.slip import Slipped
from tests.live_bridge import policies
from tests.live_bridge.minds import PEERS, mind, setup
from tests.live_bridge.towns import Engine, Town, town, whole

TRAINED = "policies_trained/ppo_wwwserve"
ROOT = Path(__file__).parents[2]


def command(*words: str) -> tuple[int, str, str]:
    """Run `live_bridge replay` as a user does."""
    done = subprocess.run(
        [sys.executable, "-m", "live_bridge", "replay", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout.strip(), done.stderr.strip()


async def busy_market(folder: Path) -> tuple[list[str], dict[str, dict[str, float]]]:
    """Some seconds of a market under load, with duels, a reload, a change of load, and its end; returns ids and balances."""
    async with AsyncExitStack() as held:
        a, b, c = [await held.enter_async_context(Engine(whole(4 + k))) for k in range(3)]
        place = await held.enter_async_context(town(folder, [a, b, c], {"duel_rate": 0.5}, policy=TRAINED))

        def usage(share: float) -> Any:
            return lambda: f"vllm:num_requests_running 1\nvllm:num_requests_waiting 0\nvllm:kv_cache_usage_perc {share}\n"

        for turn, share in enumerate((0.1, 0.5, 0.9, 0.2)):
            a.metrics = usage(share)
            answers = await asyncio.gather(*(place.ask(k % 3, prompt=f"question {turn} {k}") for k in range(24)))
            assert {code for code, _, _ in answers} == {200}
            if turn == 1:
                os.kill(place.fleet.pids()["n0"], signal.SIGHUP)
            decided = await place.metric('wwwserve_policy_decisions_total{brain="policy"}')
            await place.until(lambda decided=decided: decided_again(place, decided + 2))

        async def calm() -> bool:
            states = [await place.get("/market/v1/state", k) for k in range(3)]
            return all(not (s["works"] or s["duels"] or s["balances"]["escrow"]) for s in states)

        await place.until(calm)
        states = [await place.get("/market/v1/state", k) for k in range(3)]
        entries = await ledger_of(place)
        (folder / "ledger.json").write_bytes(orjson.dumps(entries))
        accounts = (await place.get("/market/v1/ledger/accounts"))["accounts"]
        (folder / "accounts.json").write_bytes(orjson.dumps(accounts))
        return [state["id"] for state in states], {state["id"]: state["balances"] for state in states}


async def decided_again(place: Town, least: float) -> bool:
    return await place.metric('wwwserve_policy_decisions_total{brain="policy"}') >= least


async def ledger_of(place: Town) -> list[Any]:
    found: list[Any] = []
    while page := (await place.get(f"/market/v1/ledger/journal?from={len(found)}"))["entries"]:
        found += page
    return found


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], dict[str, dict[str, float]]]:
    folder = tmp_path_factory.mktemp("market")
    return folder, *asyncio.run(busy_market(folder))


Market = tuple[Path, list[str], dict[str, dict[str, float]]]


@pytest.mark.parametrize("k", range(3))
def test_a_live_journal_replays_to_the_same_commands_and_decisions(market: Market, k: int) -> None:
    path = market[0] / f"n{k}" / "home" / "journal.jsonl"
    lines = list(read(path))
    kinds = {line[0][0] for line in lines[1:]}
    assert {"arrive", "end", "tick", "load", "asked", "decide", "gossip", "heard", "accounts"} <= kinds
    if k == 0:
        assert {line[0][2] for line in lines[1:] if line[0][0] == "asked"} == {0, 1}, "the policy was loaded twice"
    code, said, slips = command(str(path), "--policy", TRAINED)
    assert (code, slips) == (0, "")
    decisions = sum(line[0][0] == "decide" for line in lines[1:])
    assert decisions >= 5
    assert said == f"{path}: {len(lines) - 1} events, the same commands, {decisions} decisions asked again"


def test_a_replay_without_a_policy_takes_decisions_as_they_were(market: Market) -> None:
    path = market[0] / "n1" / "home" / "journal.jsonl"
    code, said, _ = command(str(path))
    assert code == 0 and said.endswith("the same commands")


def test_the_mind_that_is_replayed_believes_the_balances_that_the_ledger_has(market: Market) -> None:
    folder, ids, balances = market
    for k, me in enumerate(ids):
        path = folder / f"n{k}" / "home" / "journal.jsonl"
        result = replay(read(path), str(path))
        account = result.brain.belief.accounts[0]
        held = [account.credit_micro, account.stake_micro, account.unbonding_micro, account.escrow_micro]
        assert [amount / 1e6 for amount in held[3:]] == [balances[me]["escrow"]] == [0.0]
        assert abs(sum(held) / 1e6 - sum(balances[me].values())) < 1e-9
        assert result.brain.works == {} and result.brain.contests.open == {}


def test_the_ledgers_journal_replays_to_the_balances_that_nodes_were_told(market: Market) -> None:
    folder, ids, _ = market
    first, *entries = [from_json(each) for each in orjson.loads((folder / "ledger.json").read_bytes())]
    auditor = Auditor(first)
    for entry in entries:
        auditor.take(entry)
    proved = {row.account: row for row in auditor.state().rows}
    told = orjson.loads((folder / "accounts.json").read_bytes())
    assert set(proved) == set(ids) == set(told)
    for owner, (credit, stake, unbonding, escrow) in told.items():
        row = proved[owner]
        assert (row.stake_micro, row.escrow_micro) == (stake, escrow)
        assert row.credit_micro + row.unbonding_micro == credit + unbonding  # some has come free since
    auditor.verdict()


def test_the_ledgers_file_passes_its_audit(market: Market) -> None:
    where = market[0] / "n0" / "home" / "ledger.sqlite"
    words = [sys.executable, "-m", "live_bridge", "ledger", "audit", str(where)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_live_journal_with_one_changed_digit_is_found_out(market: Market, tmp_path: Path) -> None:
    whole_file = (market[0] / "n0" / "home" / "journal.jsonl").read_bytes()
    digits = [at for at, byte in enumerate(whole_file) if chr(byte).isdigit()]
    path = tmp_path / "journal.jsonl"
    luck = random.Random(0)
    for at in luck.sample(digits, 25):
        changed = bytearray(whole_file)
        changed[at] = ord(str((int(chr(changed[at])) + luck.randrange(1, 10)) % 10))
        path.write_bytes(changed)
        with pytest.raises(Slipped):
            replay(read(path), str(path))
    code, said, slip = command(str(path))
    assert (code, said) == (2, "") and str(path) in slip and slip.count("\n") == 0


def test_another_policy_decides_otherwise_and_is_found_out(market: Market, tmp_path: Path) -> None:
    path = market[0] / "n0" / "home" / "journal.jsonl"
    other = policies.folder_of(tmp_path / "other", policies.well((0, 0, 0)))
    code, said, _ = command(str(path), "--policy", str(other))
    assert code == 1 and "differs after" in said and "the policy chose [" in said


# -- small journals, by hand


def life(events: list[list[Any]], **changes: Any) -> list[Any]:
    """The lines of a journal: the header, and each event with the commands that it leads to."""
    made = setup(**changes)
    terms, profile = vars(terms_named("paper")), vars(profile_named("l4_qwen3_8b"))
    made = made._replace(terms=terms_named("paper"), profile=profile_named("l4_qwen3_8b"))
    brain = Brain(made)
    head = header(made, dict(terms), dict(profile), "paper", 5.0, 7)
    return [json.loads(json.dumps(head)), *[[event, brain.on(event)] for event in events]]


EVENTS: list[list[Any]] = [
    ["accounts", 0.0, [[name, 98_000_000, 2_000_000, 0, 0] for name in ("me", *PEERS)]],
    ["heard", 0.0, [[name, 5, 0.1, 1.0, 0.1, 1.0, 0, 0] for name in PEERS]],
    ["asked", 0.5, 0],
    ["decide", 0.5, 3, 4, 2],
    ["arrive", 1.0, "r", 100, 50],
    ["tick", 2.0, 1.0, {}],
]


def test_the_same_events_lead_to_the_same_commands() -> None:
    result = replay(iter(life(EVENTS)), "here")
    assert (result.events, result.decisions, result.different) == (6, 0, None)
    assert list(result.brain.works) == ["r"]


def test_a_command_that_does_not_follow_is_named_by_its_line() -> None:
    lines = life(EVENTS)
    lines[5][1][0][2] = "dee"
    result = replay(iter(lines), "here")
    assert result.events == 4
    assert result.different is not None and result.different.startswith("line 6: arrive led to [['ask', 'r', 'dee'")


def test_a_decision_is_compared_with_what_the_policy_says_to_what_it_was_asked() -> None:
    lines = life([*EVENTS, ["asked", 3.0, 0], ["arrive", 3.1, "s", 10, 10], ["decide", 3.2, 3, 4, 2], ["decide", 9.9, 1, 4, 2]])
    result = replay(iter(lines), "here", "fixed:3-4-2")
    assert result.decisions == 2
    assert result.different == "line 11: the policy chose [1, 4, 2], now [3, 4, 2]"


def test_a_policy_that_was_loaded_anew_has_begun_its_draws_anew() -> None:
    def chosen(asked: list[list[Any]]) -> list[Any]:
        """What a policy that draws says, asked at these events."""
        from live_bridge.pilot import ask, fenced

        out, brain, loads, policy = [], mind(), 0, fenced("uniform", 5.0, 7).policy
        for event in asked:
            brain.on(event)
            if event[2] != loads:
                loads, policy = event[2], fenced("uniform", 5.0, 7).policy
            action = ask(policy, *brain.seen).action
            assert action is not None
            out.append(list(action))
        return out

    asked = [["asked", float(k), k // 3] for k in range(6)]
    said = chosen(asked)
    assert said[:3] == said[3:] and said[0] != said[1]
    events = [each for event, action in zip(asked, said, strict=True) for each in (event, ["decide", event[1], *action])]
    first: list[list[Any]] = [*EVENTS[:2]]
    assert replay(iter(life([*first, *events])), "here", "uniform").decisions == 6
    events[6][2] = 0  # as if it had gone on drawing
    assert replay(iter(life([*first, *events])), "here", "uniform").different is not None


def test_a_policy_that_remembers_decides_the_same_again_and_begins_with_nothing_when_it_was_loaded_anew(tmp_path: Path) -> None:
    folder = str(policies.remembering(tmp_path / "counting"))
    lead = EVENTS[:2]

    def chosen(loads: list[int]) -> list[list[Any]]:
        """What a node with this policy has written, which asks each 5 s."""
        from live_bridge.pilot import Pilot, ask

        out, brain, pilot = [], mind(), Pilot(folder, 5.0, 7)
        for event in lead:
            brain.on(event)
        for k, load in enumerate(loads):
            if load != pilot.loads:
                pilot.reload(folder)
            asked = ["asked", 5.0 * k + 1.0, load]
            brain.on(asked)
            action = ask(pilot.baseline.policy, *brain.seen).action
            assert action is not None
            out += [asked, ["decide", asked[1], *action]]
        pilot.close()
        return out

    once, anew = chosen([0] * 12), chosen([0] * 6 + [1] * 6)
    assert {tuple(event[2:]) for event in once if event[0] == "decide"} > {tuple(e[2:]) for e in anew if e[0] == "decide"}
    for written in (once, anew):
        result = replay(iter(life([*lead, *written])), "here", folder)
        assert (result.decisions, result.different) == (12, None)
    for event in anew:
        if event[0] == "asked":
            event[2] = 0  # as if it had remembered through the reload
    different = replay(iter(life([*lead, *anew])), "here", folder).different
    assert different is not None and "the policy chose [" in different


def test_a_stalled_policys_late_answer_is_still_the_one_to_what_it_was_asked() -> None:
    late = [["asked", 3.0, 0], ["paper", 3.1], ["arrive", 3.2, "s", 10, 10], ["tick", 4.0, 1.0, {}], ["decide", 4.1, 3, 4, 2]]
    result = replay(iter(life([*EVENTS, *late])), "here", "fixed:3-4-2")
    assert (result.decisions, result.different) == (2, None)


def test_the_header_holds_all_that_a_mind_is_made_of(tmp_path: Path) -> None:
    made = setup()
    journal = Journal(tmp_path / "j.jsonl", life([])[0], None, lambda error: None)
    journal.close()
    found = setup_of(next(read(tmp_path / "j.jsonl")), "here")
    assert found._replace(terms=made.terms) == made
    assert found.terms == terms_named("paper")


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ({"format": FORMAT + 1}, f"here: has journal format {FORMAT + 1}, this build reads {FORMAT}"),
        ({}, "here: has journal format None"),
        ([], "here: does not begin with a journal's header"),
        (None, "here: does not begin with a journal's header"),
    ],
)
def test_what_is_no_journal_of_this_build_is_refused(head: Any, message: str) -> None:
    with pytest.raises(Slipped, match=message):
        replay(iter([] if head is None else [head]), "here")


def test_a_policy_that_is_not_there_is_refused() -> None:
    with pytest.raises(PolicyError, match="there is no nope"):
        replay(iter(life(EVENTS)), "here", "nope")


def test_a_journal_that_is_not_there_is_one_line_and_status_2(tmp_path: Path) -> None:
    code, said, slip = command(str(tmp_path / "none.jsonl"))
    assert (code, said) == (2, "")
    assert slip == f"live_bridge replay: {tmp_path}/none.jsonl: does not exist; a node writes journal.jsonl into its home"


def test_market_terms_are_written_in_full(tmp_path: Path) -> None:
    """A journal outlives the files that its terms came from."""
    terms = life([])[0]["terms"]
    assert terms["duel_rate"] == yaml.safe_load((ROOT / "conf" / "market" / "paper.yaml").read_text())["duel_rate"]
