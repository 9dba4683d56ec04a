"""What the tests of this folder share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from stand_ins import card_of, linear_onnx

from agents.card import CARD_FILE, POLICY_FILE
from market.action import MASK_SIZE
from market.observation import OBSERVATION_SIZE


@pytest.fixture
def write_folder(tmp_path: Path) -> Callable[..., Path]:
    """write_folder(content=..., change=lambda card: ...) writes a policy and returns its folder."""

    def write(content: bytes | None = None, change: Callable[[dict[str, Any]], object] | None = None, name: str = "tiny") -> Path:
        random = np.random.default_rng(0)
        weight, bias = random.normal(size=(OBSERVATION_SIZE, MASK_SIZE)), random.normal(size=MASK_SIZE)
        whole = linear_onnx(weight, bias) if content is None else content
        card = card_of(whole)
        if change is not None:
            change(card)
        folder = tmp_path / "policies_trained" / name
        folder.mkdir(parents=True)
        (folder / POLICY_FILE).write_bytes(whole)
        (folder / CARD_FILE).write_text(yaml.safe_dump(card), encoding="utf-8")
        return folder

    return write
