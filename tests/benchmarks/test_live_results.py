"""What was played on real engines: the kept series is whole, its summary is that of its records, and its tables say it."""

from benchmarks.proof import duelling, tables
from benchmarks.proof.playing import LEARNED
from benchmarks.proof.plays import Plan, turns
from benchmarks.proof.summary import drift, summarise
from benchmarks.results import kept


def test_plays_are_a_whole_series_of_real_engines_in_which_no_money_was_lost() -> None:
    found = kept("live/plays")
    settings, totals = found["settings"], found["summary"]["totals"]
    assert [{key: play[key] for key in ("load", "seed", "policy")} for play in found["plays"]] == [
        turn._asdict() for turn in turns(Plan(**settings))
    ]
    assert settings["backend"] == "vllm" and found["engine"].startswith("vLLM ") and len(settings["loads"]) >= 3
    assert len(settings["seeds"]) >= 3 and all(part["plays_with_money_lost"] == 0 for part in totals.values())


def test_the_summary_of_plays_is_that_of_their_records() -> None:
    found = kept("live/plays")
    assert found["summary"] == summarise(found["plays"], LEARNED)
    assert found["step_ms"] == drift(found["plays"])


def test_under_a_policy_each_load_and_seed_had_the_same_users() -> None:
    users: dict[tuple[float, int], set[float]] = {}
    for play in kept("live/plays")["plays"]:
        users.setdefault((play["load"], play["seed"]), set()).add(play["live"]["requests"])
    assert all(len(counts) == 1 for counts in users.values())


def test_the_learned_policy_serves_more_users_in_time_than_each_other_policy_and_sooner() -> None:
    found = kept("live/plays")["summary"]["differences"]
    for other in ("paper", "single"):
        for where in ("1.2", "all"):
            assert found[where][other]["slo_attainment"][1] > 0.0, f"at {where}: attainment above `{other}`, play by play"
        for where in ("1.2", "1.8", "all"):
            assert found[where][other]["latency_s_mean"][2] < 0.0, f"at {where}: latency below `{other}`, play by play"


def test_nodes_and_users_kept_time_on_two_cores_and_no_decision_was_late() -> None:
    totals = kept("live/plays")["summary"]["totals"]
    assert all(part["plays_too_busy"] == part["failed"] == 0 for part in totals.values())
    assert totals[LEARNED]["decisions_by_rules"] == 0


def test_a_table_of_plays_has_a_row_a_load_and_policy_and_the_differences() -> None:
    found = kept("live/plays")
    rows = [line for line in tables.plays(found).splitlines() if line.startswith("| ") and "users of" not in line]
    places, policies = found["summary"]["loads"], found["summary"]["policies"]
    assert len(rows) == len(places) * (len(policies) + 1)
    assert f"`{found['command']}`" in tables.plays(found)


def test_the_honest_provider_won_more_duels_than_the_lemon_by_the_judge_that_can_tell() -> None:
    found = kept("live/duels")
    part = found["summary"]["likelihood"]
    assert part["decided"] >= 50 and part["honest_share"][1] > 0.5
    assert part["credits_gained"]["honest"] > part["credits_gained"]["lemon"]
    assert all(one["money_difference"] == 0.0 for one in found["summary"].values())
    assert {name: duelling.summarise(one) for name, one in zip(found["summary"], found["records"], strict=True)} == found["summary"]


def test_a_table_of_duels_has_a_row_a_way_of_judging() -> None:
    found = kept("live/duels")
    assert len(tables.duels(found).splitlines()) == len(found["summary"]) + 4
