"""How far the forecast of an engine is from what happens: `python -m benchmarks.forecast`. True lengths are known to it."""

import numpy as np

from benchmarks.measure import command_line, report
from benchmarks.serving import NODES, PROFILE, profile_of, workload
from market import serving
from market.rule import COMPILED, records, rule

CASES = (("mixed", 0.7, 256), ("mixed", 0.9, 256), ("mixed", 1.3, 256), ("mixed", 0.9, 16), ("chat", 1.0, 16), ("chat", 1.0, 256))
"""Load, factor on its rate, max_num_seqs."""


@rule
def watch(engine, profile, requests, arrivals_s, prompts, outputs, forecasts_s):
    """Serve all requests at one engine and note what is forecast for each as it comes."""
    for i in range(len(arrivals_s)):
        serving.advance(engine, profile, requests, arrivals_s[i])
        forecasts_s[i] = serving.forecast_s(
            profile,
            engine.running,
            engine.kv_tokens,
            engine.due_tokens,
            engine.waiting,
            engine.waiting_prompt,
            engine.waiting_output,
            prompts[i],
            outputs[i],
        )
        request = requests[i]
        request.prompt_tokens = prompts[i]
        request.output_tokens = outputs[i]
        request.forecast_tokens = outputs[i]
        serving.enqueue(engine, requests, i, arrivals_s[i])
    serving.advance(engine, profile, requests, serving.NEVER)


def errors(load: str, factor: float, slots: int, count: int) -> dict[str, float]:
    """Compare forecasts with latencies; returns the mean latency (s), and bias and mean absolute error as shares of it."""
    arrivals_s, prompts, outputs = workload(load, count, 1)
    arrivals_s *= NODES / factor
    profile, engine, requests = profile_of(PROFILE), records(serving.ENGINE, 1)[0], records(serving.REQUEST, count)
    profile["max_num_seqs"] = slots
    serving.open_engine(engine, 0.0)
    forecasts_s = np.zeros(count)
    watch(engine, profile, requests, arrivals_s, prompts, outputs, forecasts_s)
    latency_s = requests["finish_s"] - arrivals_s + profile["h_s"]
    off = forecasts_s - latency_s
    mean = float(latency_s.mean())
    return {"latency_s": mean, "bias": float(off.mean()) / mean, "absolute": float(np.abs(off).mean()) / mean}


def main() -> None:
    """Print one line a case and the figures in JSON."""
    words = command_line("forecast", __doc__, "fewer requests").parse_args()
    if not COMPILED:
        raise SystemExit("benchmarks.forecast: needs compiled rules; unset RULES")
    figures = {}
    print(
        "| load | factor on its rate | `max_num_seqs` | mean latency, s | bias | mean absolute error |\n"
        "|---|---:|---:|---:|---:|---:|"
    )
    for load, factor, slots in CASES:
        found = errors(load, factor, slots, 300 if words.quick else 3_000)
        print(f"| {load} | {factor} | {slots} | {found['latency_s']:.1f} | {found['bias']:+.0%} | {found['absolute']:.0%} |")
        figures[f"{load} x {factor}, {slots} slots"] = found
    report("forecast", {"cases": figures}, words.json)


if __name__ == "__main__":
    main()
