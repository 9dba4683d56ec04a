"""The benchmark of the node core serves what it says, with jumps and without."""

import json

import numpy as np
import pytest

from benchmarks import measure, serving
from market.rule import COMPILED, records
from market.serving import ENGINE, REQUEST, open_engine


@pytest.mark.parametrize("load", sorted(serving.LOADS))
def test_jumping_and_stepping_serve_the_same(load: str) -> None:
    totals = []
    for jump in (True, False):
        columns = serving.workload(load, 60, 0)
        engines, requests = records(ENGINE, serving.NODES), records(REQUEST, 60)
        for engine in engines:
            open_engine(engine, 0.0)
        given = columns if COMPILED else tuple(column.tolist() for column in columns)
        spare = np.arange(60) if COMPILED else list(range(60))
        totals.append(serving.drive(engines, serving.profile_of(serving.PROFILE), requests, spare, *given, jump))
        assert sorted(spare) == list(range(60))
    assert totals[0] == pytest.approx(totals[1], rel=1e-9) and totals[0] > 0.0


def test_a_workload_has_the_rate_that_it_names() -> None:
    tables, rate = serving.LOADS["chat"]
    arrivals_s, prompts, outputs = serving.workload("chat", 5_000, 1)
    assert tables == ("chat",) and 5_000 / arrivals_s[-1] == pytest.approx(rate * serving.NODES, rel=0.06)
    assert prompts.min() >= 1 and outputs.min() >= 1


def test_the_last_line_of_a_report_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    measure.report("x", {"figures": {"a": 1.5}})
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["benchmark"] == "x" and last["figures"] == {"a": 1.5} and last["cpus"] >= 1
    assert measure.median_s(lambda: None, 3) >= 0.0
