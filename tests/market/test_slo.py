"""When a request counts as attained, and when its fate is known."""

import math

import pytest

from market import slo


@pytest.mark.parametrize(("latency_s", "met"), [(0.0, True), (250.0, True), (250.0001, False), (math.inf, False)])
def test_a_request_is_attained_within_its_objective(latency_s: float, met: bool) -> None:
    assert slo.attained(latency_s, 250.0) == met


@pytest.mark.parametrize(("arrival_s", "due"), [(0.0, True), (650.0, True), (650.1, False), (900.0, False)])
def test_a_request_is_due_when_its_deadline_lies_in_the_window(arrival_s: float, due: bool) -> None:
    assert slo.due_in_window(arrival_s, 250.0, 900.0) == due
