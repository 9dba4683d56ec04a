"""What engines export, read; and what cannot be believed, refused by name."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from live_bridge.backends.metrics import BadMetricError, Load, MetricsError, MissingMetricError, read

URL = "http://127.0.0.1:8101/metrics"
VLLM = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="a/b"} 3.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="a/b"} 7.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="a/b",reason="capacity"} 7.0
vllm:kv_cache_usage_perc{engine="0",model_name="a/b"} 0.25
vllm:cache_config_info{block_size="16",cache_dtype="auto",engine="0",num_gpu_blocks="2588"} 1.0
python_gc_objects_collected_total{generation="0"} 9215.0
"""
SGLANG = """\
sglang:num_running_reqs{engine_type="unified",model_name="m",pp_rank="0",tp_rank="0"} 5.0
sglang:num_running_reqs{engine_type="unified",model_name="m",pp_rank="0",tp_rank="1"} 5.0
sglang:num_queue_reqs{engine_type="unified",model_name="m",pp_rank="0",tp_rank="0"} 2
sglang:num_queue_reqs{model_name="m",priority="0",tp_rank="0"} 2
sglang:token_usage{model_name="m",tp_rank="0"} 0.5
sglang:max_total_num_tokens{model_name="m",tp_rank="0"} 160000
"""


def two_engines(text: str) -> str:
    """The exposition of two data-parallel engines: the second is four times as busy in requests, and half full."""
    second = text.replace('engine="0"', 'engine="1"').replace(" 3.0", " 12.0").replace(" 7.0", " 28.0").replace(" 0.25", " 0.75")
    return text + second


def test_vllm_is_read() -> None:
    assert read(VLLM, "vllm", URL, 12.5) == Load(3, 7, 0.25, 2588, 12.5, "metrics")


def test_the_old_name_of_the_cache_usage_is_read() -> None:
    assert read(VLLM.replace("kv_cache", "gpu_cache"), "vllm", URL, 0.0).usage == 0.25


def test_the_new_name_wins_where_both_are_told() -> None:
    both = VLLM + 'vllm:gpu_cache_usage_perc{engine="0"} 0.9\n'
    assert read(both, "vllm", URL, 0.0).usage == 0.25


def test_several_engines_behind_one_url_count_as_one() -> None:
    assert read(two_engines(VLLM), "vllm", URL, 0.0) == Load(15, 35, 0.5, 5176, 0.0, "metrics")


def test_blocks_of_another_size_are_counted_in_sixteens() -> None:
    assert read(VLLM.replace('block_size="16"', 'block_size="128"'), "vllm", URL, 0.0).kv_blocks == 8 * 2588


@pytest.mark.parametrize("blocks", ["None", "", "0"])
def test_blocks_that_are_not_told_yet_are_not_known(blocks: str) -> None:
    assert read(VLLM.replace("2588", blocks), "vllm", URL, 0.0).kv_blocks is None


def test_blocks_without_a_number_are_refused() -> None:
    with pytest.raises(BadMetricError, match="num_gpu_blocks"):
        read(VLLM.replace("2588", "many"), "vllm", URL, 0.0)


def test_sglang_is_read_once_however_many_ranks_tell_it() -> None:
    assert read(SGLANG, "sglang", URL, 1.0) == Load(5, 2, 0.5, 10000, 1.0, "metrics")


@pytest.mark.parametrize("name", ["vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"])
def test_a_missing_or_renamed_metric_is_an_error_that_says_where(name: str) -> None:
    wanted = rf"{URL} has no {name} \(vLLM 0.32 exports it\); is this a vLLM server\?"
    with pytest.raises(MissingMetricError, match=wanted):
        read(VLLM.replace(name + "{", name + "_v2{"), "vllm", URL, 0.0)


def test_another_engine_is_not_taken_for_an_idle_one() -> None:
    with pytest.raises(MissingMetricError, match=r"sglang:num_running_reqs .*--enable-metrics.*an SGLang server"):
        read(VLLM, "sglang", URL, 0.0)
    with pytest.raises(MissingMetricError):
        read("", "vllm", URL, 0.0)


@pytest.mark.parametrize("value", ["NaN", "nan", "+Inf", "-Inf", "-1.0", "many", "1.0.0"])
@pytest.mark.parametrize("engine", ["0", "1"])
def test_no_number_is_no_idleness(value: str, engine: str) -> None:
    lines = two_engines(VLLM).splitlines()
    place = next(
        at for at, line in enumerate(lines) if line.startswith("vllm:num_requests_running") and f'engine="{engine}"' in line
    )
    lines[place] = lines[place].rsplit(" ", 1)[0] + f" {value}"
    with pytest.raises(BadMetricError) as error:
        read("\n".join(lines), "vllm", URL, 0.0)
    for part in (URL, "vllm:num_requests_running", value, f"/{engine}/"):
        assert part in str(error.value)


def test_a_usage_in_per_cent_is_refused() -> None:
    with pytest.raises(BadMetricError, match=r"share in \[0, 1\], got 25"):
        read(VLLM.replace(" 0.25", " 25"), "vllm", URL, 0.0)


def test_labels_may_hold_anything() -> None:
    odd = VLLM.replace('"a/b"', r'"a \"b\", engine=\"9\" } {\\"')
    assert read(odd, "vllm", URL, 0.0)[:3] == (3, 7, 0.25)


def test_a_metric_without_labels_and_with_a_time_is_read() -> None:
    plain = "vllm:num_requests_running 2 1700000000\nvllm:num_requests_waiting 0\nvllm:kv_cache_usage_perc 1e-3\n"
    assert read(plain, "vllm", URL, 0.0) == Load(2, 0, 1e-3, None, 0.0, "metrics")


@given(st.text(alphabet='vllm:num_requests_running{}="\\ 0\n.N#', max_size=200))
def test_garbage_is_an_error_of_ours_or_nothing_at_all(text: str) -> None:
    try:
        load = read(text + "\n" + VLLM, "vllm", URL, 0.0)
    except MetricsError as error:
        assert URL in str(error)
    else:
        assert load.running >= 3
