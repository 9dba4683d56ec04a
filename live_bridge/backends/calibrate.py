"""`live_bridge calibrate URL`: measure a real engine, write what it costs as a serving profile, and say how far the rules miss it.

An idle sweep gives first coefficients, a loaded run corrects them with `market.serving` in the loop, a run of its own judges them.
"""

import argparse
import json
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import uvloop

from live_bridge.backends import rehearsal
from live_bridge.backends.metrics import MetricsError
from live_bridge.backends.probe import HttpProbe, Probe, ProbeError, served_load, served_model, served_places, served_version
from live_bridge.backends.rehearsal import Ask, Figures
from live_bridge.backends.sweep import Coefficients, Limits, decode_step, fit, measure
from live_bridge.clock import Clock
from live_bridge.http.client import Client
from live_bridge.http.message import Headers

DRIFT = 0.1
"""Share by which an engine's decode step may change while it is measured: beyond it, the figures are of no one machine."""
MEANINGS = {
    "a_s": "s, floor of an iteration",
    "a2_s": "s, fixed part of a compute-bound iteration",
    "b_s": "s per token computed",
    "c_s": "s per decoding request",
    "d_s": "s per KV token read by decoding requests",
    "e_s": "s added by any prefill",
    "q_s": "s per prefill token x context token",
    "h_s": "s per request outside the engine",
    "kv_blocks": "16-token blocks",
    "max_num_seqs": "requests running at once",
    "max_num_batched_tokens": "tokens an iteration may compute",
    "quality": "log-odds against the mean opponent; not measured here",
    "kind": "measured | derived | roofline",
    "error": "share, expected error of an iteration time",
}


class Plan(NamedTuple):
    """How to load the engine."""

    share: float  # of the capacity
    loaded_s: float
    held_out_s: float
    mean_prompt: float  # tokens
    mean_output: float
    seed: int


class Judgement(NamedTuple):
    """One run: what was measured, what the rules say, and the relative error of it."""

    requests: int
    measured: Figures
    predicted: Figures
    error: Figures


class Calibration(NamedTuple):
    """What a calibration has found."""

    cost: Coefficients
    limits: Limits
    idle_error: float  # mean relative error of the idle sweep's rows
    fit_loss: float
    rate: float  # requests per s of the runs
    drift: float  # relative change of the decode step from beginning to end
    fitted: Judgement
    held_out: Judgement
    burst: Judgement  # its makespan is the engine's capacity

    @property
    def error(self) -> float:
        """The largest error on the run that nothing was fitted to: latency, first token, and capacity."""
        seen = self.held_out.error
        return max(
            abs(value)
            for value in (
                seen.latency_mean_s,
                seen.latency_p50_s,
                seen.latency_p99_s,
                seen.ttft_mean_s,
                self.burst.error.makespan_s,
            )
        )


async def calibrate(probe: Probe, limits: Limits, plan: Plan, tell: Callable[[str], None]) -> Calibration:
    """Measure, fit and judge.

    errors   ProbeError
    """
    prefills, decodes = await measure(probe, limits, tell)
    idle, idle_error = fit(prefills, decodes)
    tell(f"idle sweep: mean error {idle_error:.1%}")
    batch = min(limits.max_num_seqs, 8)
    before = await decode_step(probe, batch, 128)
    rate = plan.share * rehearsal.capacity_rps(idle, limits, plan.mean_prompt, plan.mean_output)
    tell(f"loaded run: {rate:.2f} requests/s for {plan.loaded_s:g} s")
    training = await rehearsal.load(probe, _draw(plan, rate, plan.loaded_s, limits, 1))
    cost, loss = rehearsal.fit(idle, limits, training)
    tell(f"fitted {len(training)} requests; held-out run: {plan.held_out_s:g} s")
    judged = await rehearsal.load(probe, _draw(plan, rate, plan.held_out_s, limits, 2))
    size = Ask(0.0, round(plan.mean_prompt), round(plan.mean_output))
    burst = await rehearsal.load(probe, [size] * min(4 * limits.max_num_seqs, 256))
    after = await decode_step(probe, batch, 128)
    runs = [Judgement(len(run), *rehearsal.compare(cost, limits, run)) for run in (training, judged, burst)]
    return Calibration(cost, limits, idle_error, loss, rate, after.step_s / before.step_s - 1.0, *runs)


def _draw(plan: Plan, rate: float, span_s: float, limits: Limits, number: int) -> list[Ask]:
    return rehearsal.poisson(rate, span_s, plan.mean_prompt, plan.mean_output, limits, 1000 * plan.seed + number)


def profile_text(found: Calibration, quality: float, title: str, source: str) -> str:
    """Write a calibration in the form of conf/serving/*.yaml."""
    values: dict[str, Any] = {name: float(f"{value:.4g}") for name, value in found.cost._asdict().items()}
    values |= {name: getattr(found.limits, name) for name in ("kv_blocks", "max_num_seqs", "max_num_batched_tokens")}
    values |= {"quality": quality, "kind": "measured", "error": float(f"{found.error:.2g}")}
    lines = [f"{f'{name}: {values[name]}':<31} # {meaning}" for name, meaning in MEANINGS.items()]
    return "\n".join([f"# {title}", *lines, f"source: {json.dumps(source)}"]) + "\n"


def report_text(found: Calibration) -> str:
    """Write the errors as a table."""
    rows = [("", "measured", "rules", "error")]
    for name, run in (("fitted", found.fitted), ("held out", found.held_out), ("burst", found.burst)):
        rows.append((f"{name}, {run.requests} requests", "", "", ""))
        for field, measured, predicted, error in zip(Figures._fields, run.measured, run.predicted, run.error, strict=True):
            rows.append((f"  {field}", f"{measured:.4f}", f"{predicted:.4f}", f"{error:+.1%}"))
    table = [f"{name:<24}{measured:>10}{predicted:>10}{error:>9}" for name, measured, predicted, error in rows]
    seen = found.held_out.error
    first = f"time to first token, held out: mean {seen.ttft_mean_s:+.1%}, p50 {seen.ttft_p50_s:+.1%}, p99 {seen.ttft_p99_s:+.1%}"
    return "\n".join([*table, first, f"decode step from beginning to end: {found.drift:+.1%}"])


def report_json(found: Calibration, source: str) -> dict[str, Any]:
    """Turn a calibration into a document."""
    runs = {
        name: {"requests": run.requests, **{part: getattr(run, part)._asdict() for part in ("measured", "predicted", "error")}}
        for name, run in (("fitted", found.fitted), ("held_out", found.held_out), ("burst", found.burst))
    }
    numbers = {name: getattr(found, name) for name in ("idle_error", "fit_loss", "rate", "drift", "error")}
    return {"source": source, "cost": found.cost._asdict(), "limits": found.limits._asdict(), **numbers, "runs": runs}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the command takes."""
    parser.add_argument("url", help="of the engine: vLLM, or what honours its API and metrics")
    parser.add_argument(
        "--max-num-seqs", type=int, help="with which the engine was started (default: found out by asking for more)"
    )
    parser.add_argument("--max-num-batched-tokens", type=int, default=2048, help="likewise (default: %(default)s)")
    parser.add_argument("--kv-blocks", type=int, help="16-token KV blocks, for an engine that does not tell them")
    parser.add_argument("--context", type=int, help="tokens of prompt and answer, for an engine that does not tell them")
    parser.add_argument("--model", help="the name to ask for (default: the first that it serves)")
    parser.add_argument("--key-file", type=Path, help="file with the engine's API key")
    parser.add_argument("--out", type=Path, default=Path("profile.yaml"), help="profile to write (default: %(default)s)")
    parser.add_argument("--report", type=Path, help="JSON report to write")
    parser.add_argument("--title", help="first line of the profile: which model on which hardware")
    parser.add_argument("--quality", type=float, default=0.0, help="of the model's answers, for duels (default: %(default)s)")
    parser.add_argument("--load", type=float, default=0.6, help="share of the capacity in the runs (default: %(default)s)")
    parser.add_argument("--loaded-s", type=float, default=90.0, help="s of the run that is fitted (default: %(default)s)")
    parser.add_argument("--held-out-s", type=float, default=60.0, help="s of the run that judges (default: %(default)s)")
    parser.add_argument("--mean-prompt", type=float, default=120.0, help="tokens (default: %(default)s)")
    parser.add_argument("--mean-output", type=float, default=80.0, help="tokens (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of arrivals and lengths, not of the prompts (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Calibrate; 1 when the engine cannot be measured, or changed while it was."""
    try:
        found, source = uvloop.run(_run(args))
    except (ProbeError, MetricsError, OSError) as error:
        sys.stderr.write(f"live_bridge calibrate: {error}\n")
        return 1
    title = args.title or f"Measured at {args.url}"
    args.out.write_text(profile_text(found, args.quality, title, source), encoding="utf-8")
    if args.report is not None:
        args.report.write_text(json.dumps(report_json(found, source), indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(f"{report_text(found)}\nwrote {args.out}: an error of {found.error:.1%} at most on the held-out run\n")
    if abs(found.drift) > DRIFT:
        sys.stderr.write(
            f"live_bridge calibrate: the decode step changed by {found.drift:+.0%} while it was measured, more than {DRIFT:.0%}; "
            "repeat it on a host that does nothing else\n"
        )
        return 1
    return 0


def _tell(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


async def _run(args: argparse.Namespace) -> tuple[Calibration, str]:
    client, clock = Client(), Clock()
    try:
        headers: Headers = []
        if args.key_file is not None:
            headers = [(b"authorization", b"Bearer " + args.key_file.read_bytes().strip())]
        served, told = await served_model(client, args.url, headers)
        context, kv_blocks = args.context or told, args.kv_blocks
        if context is None:
            raise ProbeError(f"{args.url}/v1/models: does not tell max_model_len; give --context")
        if kv_blocks is None:
            kv_blocks = (await served_load(client, args.url, headers, clock)).kv_blocks
        if kv_blocks is None:
            raise ProbeError(f"{args.url}/metrics: does not tell num_gpu_blocks; give --kv-blocks, as the engine's log says it")
        probe = HttpProbe(client, args.url, args.model or served, clock, headers)
        places = args.max_num_seqs or await served_places(client, args.url, headers, probe)
        limits = Limits(kv_blocks, places, args.max_num_batched_tokens, context)
        plan = Plan(args.load, args.loaded_s, args.held_out_s, args.mean_prompt, args.mean_output, args.seed)
        _tell(f"{args.url}: {limits}")
        found = await calibrate(probe, limits, plan, _tell)
        version = await served_version(client, args.url, headers)
    finally:
        await client.close()
    day = datetime.now().astimezone().date().isoformat()
    runs = f"idle sweep, {found.fitted.requests} requests at {args.load:g} of capacity, judged on {found.held_out.requests} others"
    return found, f"live_bridge calibrate on {day}: {version}, model {args.model or served}; {runs}"
