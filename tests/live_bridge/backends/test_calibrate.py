"""A calibration against engines whose cost is known, in virtual time; and the command against one that listens."""

import argparse
import asyncio
import functools
import json
from pathlib import Path

import numpy as np
import pytest

from live_bridge.backends import calibrate as command
from live_bridge.backends import rehearsal
from live_bridge.backends.calibrate import Calibration, Plan, calibrate, profile_text, report_json, report_text
from live_bridge.backends.engine import Engine, Size
from live_bridge.backends.probe import Timing
from live_bridge.backends.sweep import Coefficients, Decode, Limits, Prefill, batches, fit, together
from live_bridge.clock import Clock
from live_bridge.config import profile_named
from market.profile import Profile
from tests.live_bridge.backends.virtual import run as run_virtually

SPEED = 0.001
"""Market seconds per virtual second: a loop's milliseconds become microseconds."""
LINEAR = Coefficients(a_s=0.0105, a2_s=0.0105, b_s=3.6e-4, c_s=6e-4, d_s=1.2e-6, e_s=0.0, q_s=5e-8, h_s=0.012)
"""Like a small model on a CPU: every token computed costs its own time."""
CARD = Coefficients(a_s=0.0118, a2_s=0.0068, b_s=5.67e-5, c_s=2.2e-5, d_s=9.6e-8, e_s=0.002, q_s=0.0, h_s=0.006)
"""An A100's: up to 88 tokens cost what one costs."""
LIMITS = Limits(kv_blocks=3000, max_num_seqs=8, max_num_batched_tokens=2048, context=4096)
PLAN = Plan(share=0.6, loaded_s=45.0, held_out_s=30.0, mean_prompt=120.0, mean_output=80.0, seed=0)


def profile_of(cost: Coefficients, limits: Limits) -> Profile:
    sizes = {name: getattr(limits, name) for name in ("kv_blocks", "max_num_seqs", "max_num_batched_tokens")}
    return Profile(**cost._asdict(), **sizes, quality=0.0, kind="derived", error=0.0, source="a test")


class EngineProbe:
    """An emulated engine, asked without HTTP; what it tells may be disturbed."""

    def __init__(self, cost: Coefficients, limits: Limits, noise: float = 0.0) -> None:
        self.clock = Clock(SPEED, asyncio.get_running_loop().time)
        self.engine = Engine(profile_of(cost, limits), self.clock)
        self.noise, self.chance = noise, np.random.default_rng(5)

    async def ask(self, prompt: int, output: int) -> Timing:
        sent_s, token_s = self.clock.now(), list[float]()
        ticket = self.engine.submit([Size(prompt, output, output)], watched=True)
        while ticket.left:
            await ticket.change()
            late_s = float(self.chance.exponential(self.noise)) if self.noise else 0.0
            token_s += [self.clock.now() + late_s] * (ticket.jobs[0].visible - len(token_s))
        return Timing(sent_s, prompt, token_s)


@functools.cache
def found(cost: Coefficients, limits: Limits = LIMITS, plan: Plan = PLAN, noise: float = 0.0) -> Calibration:
    async def main() -> Calibration:
        probe = EngineProbe(cost, limits, noise)
        out = await calibrate(probe, limits, plan, lambda text: None)
        probe.engine.close()
        return out

    return run_virtually(main())


@pytest.mark.parametrize("cost", [LINEAR, CARD], ids=["linear", "card"])
def test_a_known_engine_is_found_again(cost: Coefficients) -> None:
    out = found(cost)
    assert out.idle_error < 0.02
    assert out.error < 0.02
    assert abs(out.drift) < 0.01
    for batch, context in ((1, 100), (4, 300), (8, 600)):
        profile, truth = (rehearsal.record_of(values, LIMITS) for values in (out.cost, cost))
        step_s, true_s = (rehearsal.serving.decode_s(record, batch, batch * context) for record in (profile, truth))
        assert step_s == pytest.approx(true_s, rel=0.03)
    for prompt in (100, 500, 1500):
        first_s, true_s = (ttft_alone(values, prompt) for values in (out.cost, cost))
        assert first_s == pytest.approx(true_s, rel=0.06)


def ttft_alone(cost: Coefficients, prompt: int) -> float:
    return float(rehearsal.predict(cost, LIMITS, [Timing(0.0, prompt, [0.0, 0.0])])[0][0])


def test_coefficients_that_can_be_told_apart_are_recovered() -> None:
    cost = found(LINEAR).cost
    assert cost.a_s == pytest.approx(LINEAR.a_s, rel=0.05)
    assert cost.b_s == pytest.approx(LINEAR.b_s, rel=0.05)
    assert cost.c_s == pytest.approx(LINEAR.c_s, rel=0.2)
    assert cost.h_s + cost.e_s == pytest.approx(LINEAR.h_s, rel=0.1)


def test_jitter_of_a_busy_host_is_survived() -> None:
    out = found(LINEAR, noise=0.002)
    assert out.error < 0.1
    assert out.cost.a_s == pytest.approx(LINEAR.a_s, rel=0.15)
    assert out.cost.b_s == pytest.approx(LINEAR.b_s, rel=0.15)


def test_a_loaded_run_corrects_what_idleness_did_not_show() -> None:
    async def main() -> tuple[float, float]:
        truth = LINEAR._replace(a_s=1.12 * LINEAR.a_s, a2_s=1.12 * LINEAR.a2_s, e_s=0.004)
        probe = EngineProbe(truth, LIMITS)
        rate = 0.6 * rehearsal.capacity_rps(LINEAR, LIMITS, 120.0, 80.0)
        first, second = [await rehearsal.load(probe, rehearsal.poisson(rate, 60.0, 120.0, 80.0, LIMITS, seed)) for seed in (1, 2)]
        fitted, _ = rehearsal.fit(LINEAR, LIMITS, first)
        probe.engine.close()
        errors = [rehearsal.compare(cost, LIMITS, second)[2] for cost in (LINEAR, fitted)]
        return abs(errors[0].latency_mean_s), max(abs(errors[1].latency_mean_s), abs(errors[1].latency_p99_s))

    before, after = run_virtually(main())
    assert before > 0.1
    assert after < 0.03


def test_a_profile_that_was_written_can_be_read_and_served(tmp_path: Path) -> None:
    judged = rehearsal.figures(np.zeros(2), np.array([0.1, 0.2]), np.array([1.0, 2.0]))
    run = command.Judgement(2, judged, judged, rehearsal.Figures(*[0.03] * 7))
    out = Calibration(CARD, LIMITS, 0.01, 0.02, 3.0, 0.0, run, run, run)
    path = tmp_path / "mine.yaml"
    path.write_text(profile_text(out, -0.5, 'A "card"', 'said "so"'), encoding="utf-8")
    profile = profile_named(str(path))
    assert (profile.kind, profile.error, profile.quality, profile.source) == ("measured", 0.03, -0.5, 'said "so"')
    for name, value in CARD._asdict().items():
        assert getattr(profile, name) == pytest.approx(value, rel=1e-3)
    seen = out.held_out.error
    said = f"time to first token, held out: mean {seen.ttft_mean_s:+.1%}, p50 {seen.ttft_p50_s:+.1%}, p99 {seen.ttft_p99_s:+.1%}"
    assert said in report_text(out).splitlines()
    document = json.loads(json.dumps(report_json(out, "x")))
    assert document["runs"]["held_out"]["error"]["ttft_p99_s"] == 0.03
    written = path.read_text(encoding="utf-8").splitlines()
    shipped = (Path(__file__).parents[3] / "conf/serving/a100_qwen3_8b.yaml").read_text(encoding="utf-8").splitlines()
    assert [line.split(":")[0] for line in written[1:]] == [line.split(":")[0] for line in shipped[1:]]


# -- the parts


def rows_of(cost: Coefficients) -> tuple[list[Prefill], list[Decode]]:
    record = rehearsal.record_of(cost, LIMITS)
    prefills = [Prefill(prompt, ttft_alone(cost, prompt)) for prompt in (16, 48, 96, 144, 224, 384, 768, 1200, 2000)]
    decodes = [Decode(n, n * c, rehearsal.serving.decode_s(record, n, n * c)) for n in (1, 2, 4, 8) for c in (50, 400, 900)]
    return prefills, decodes


def test_exact_rows_give_exact_coefficients() -> None:
    cost, error = fit(*rows_of(LINEAR))
    assert error < 1e-9
    assert cost == pytest.approx(LINEAR, rel=1e-6)


def test_what_a_memory_bound_engine_does_not_tell_apart_is_still_explained() -> None:
    cost, error = fit(*rows_of(CARD))
    assert error < 0.01
    assert cost.b_s == pytest.approx(CARD.b_s, rel=0.05)
    assert cost.a2_s < cost.a_s
    assert all(value >= 0.0 for value in cost)


def test_steps_are_counted_only_while_all_decode() -> None:
    early = Timing(0.0, 100, [0.1 * count for count in range(1, 11)])
    late = Timing(0.0, 100, [0.55 + 0.2 * count for count in range(5)])
    step_s, context = together([early, late])
    assert step_s == pytest.approx((0.1 + 0.2) / 2)
    assert 100 < context < 110
    with pytest.raises(ValueError, match="never decoded together"):
        together([early, Timing(5.0, 100, [6.0, 6.1])])


def test_batches_cover_the_places_of_an_engine() -> None:
    assert [batches(seqs) for seqs in (1, 3, 8, 24, 256)] == [
        [1],
        [1, 2, 3],
        [1, 2, 4, 8],
        [1, 2, 4, 8, 16, 24],
        [1, 2, 4, 8, 16, 32, 64],
    ]


def test_a_workload_is_seeded_and_has_its_rate_and_lengths() -> None:
    asks = rehearsal.poisson(5.0, 400.0, 120.0, 80.0, LIMITS, 3)
    assert asks == rehearsal.poisson(5.0, 400.0, 120.0, 80.0, LIMITS, 3) != rehearsal.poisson(5.0, 400.0, 120.0, 80.0, LIMITS, 4)
    assert len(asks) == pytest.approx(2000, rel=0.1)
    assert np.mean([ask.prompt for ask in asks]) == pytest.approx(120, rel=0.1)
    assert np.mean([ask.output for ask in asks]) == pytest.approx(80, rel=0.1)
    assert all(ask.prompt >= 1 and ask.output >= 2 and ask.prompt + ask.output <= LIMITS.context for ask in asks)


def test_capacity_is_the_rate_beyond_which_a_queue_grows() -> None:
    capacity = rehearsal.capacity_rps(LINEAR, LIMITS, 120.0, 80.0)

    def slowdown(share: float) -> float:
        asks = rehearsal.poisson(share * capacity, 400.0, 120.0, 80.0, LIMITS, 1)
        run = [Timing(ask.at_s, ask.prompt, [0.0] * ask.output) for ask in asks]
        latency = rehearsal.predict(LINEAR, LIMITS, run)[1]
        return float(latency[-50:].mean() / latency[:50].mean())

    assert slowdown(0.7) < 2.0
    assert slowdown(1.4) > 4.0


# -- the command


def command_line(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args(words)


def test_an_engine_that_is_not_there_is_an_error_and_no_traceback(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["http://127.0.0.1:9", "--max-num-seqs", "8", "--out", str(tmp_path / "p.yaml")]
    assert command.run(command_line(words)) == 1
    assert "live_bridge calibrate: http://127.0.0.1:9/v1/models" in capsys.readouterr().err
    assert not (tmp_path / "p.yaml").exists()


def test_a_host_that_changed_meanwhile_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    same = rehearsal.Figures(*[1.0] * 7)
    run = command.Judgement(2, same, same, rehearsal.Figures(*[0.0] * 7))

    async def drifted(args: argparse.Namespace) -> tuple[Calibration, str]:
        return Calibration(CARD, LIMITS, 0.0, 0.0, 1.0, -0.2, run, run, run), "x"

    monkeypatch.setattr(command, "_run", drifted)
    assert command.run(command_line(["http://x", "--max-num-seqs", "8", "--out", str(tmp_path / "p.yaml")])) == 1
    assert "changed by -20%" in capsys.readouterr().err
