"""Serving profiles: what an engine's iterations cost, by name, unit and range. Values stand in conf/serving/."""

from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

from market.decoding import PROFILE, SLOTS
from market.rule import records
from market.terms import Range, put

Cost = Annotated[float, Range(0.0, 10.0, "s")]


@dataclass(frozen=True)
class Profile:
    """One conf/serving file: what an engine's iterations cost, and where the numbers come from (market/serving.py)."""

    a_s: Cost
    a2_s: Cost
    b_s: Annotated[float, Range(1e-9, 1.0, "s")]
    c_s: Cost
    d_s: Cost
    e_s: Cost
    q_s: Cost
    h_s: Cost
    kv_blocks: Annotated[int, Range(8, 10_000_000, "blocks")]
    max_num_seqs: Annotated[int, Range(1, SLOTS, "requests")]
    max_num_batched_tokens: Annotated[int, Range(SLOTS, 1_000_000, "tokens")]
    quality: Annotated[float, Range(-100.0, 100.0, "log-odds")]
    kind: Literal["measured", "derived", "roofline"]
    error: Annotated[float, Range(0.0, 10.0, "share")]
    source: str


def to_record(profile: Profile) -> Any:
    """Turn a profile into the record that rules take (one row)."""
    table = records(PROFILE, 1)
    for field in fields(profile):
        if field.name in (PROFILE.names or ()):
            put(table[0], field.name, getattr(profile, field.name))
    return table
