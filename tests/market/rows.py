"""Records for tests: made from names and values, read back as plain values, in either mode of the rules."""

from typing import Any

import numpy as np

from market.rule import fill, records, to_array
from market.terms import Terms, put


def table(dtype: np.dtype, *rows: dict[str, Any]) -> Any:
    """Make one record for each mapping; fields that it does not name are 0."""
    out = records(dtype, len(rows))
    values = np.zeros(len(rows), dtype)
    for i, row in enumerate(rows):
        for name, value in row.items():
            values[name][i] = value
    fill(out, values)
    return out


def one(dtype: np.dtype, **fields: Any) -> Any:
    """Make a table of one record."""
    return table(dtype, fields)


def read(records_: Any, dtype: np.dtype, index: int = 0) -> dict[str, Any]:
    """All fields of one record, arrays as lists."""
    row = to_array(records_, dtype)[index]
    return {name: row[name].tolist() for name in dtype.names or ()}


def column(records_: Any, dtype: np.dtype, name: str) -> list[Any]:
    """One field of all records."""
    return to_array(records_, dtype)[name].tolist()


def image(records_: Any, dtype: np.dtype) -> bytes:
    """Every byte of a table, to see that nothing has changed."""
    return to_array(records_, dtype).tobytes()


def put_all(record: Any, **fields: Any) -> Any:
    """Overwrite fields of a record; returns it."""
    for name, value in fields.items():
        put(record, name, value)
    return record


TERMS = Terms(
    initial_credit=100.0,
    initial_stake=2.0,
    price_per_request=1.0,
    price_per_ktoken=0.0,
    judge_fee=1.0,
    candidates=3,
    offer_timeout_s=2.0,
    reoffer_s=1.0,
    gossip_s=3.0,
    suspect_rounds=2.0,
    gone_rounds=2.0,
    duel_rate=0.1,
    duel_ttl_s=600.0,
    judges=3,
    judge_tokens=16,
    judge_scale=1.0,
    slash_per_mille=200,
    bond=0.0,
    minority_per_mille=200,
    absent_per_mille=50,
    unbond_s=60.0,
    stake_rate=2.0,
    engine_backlog=1,
    paper_usage_target=0.7,
    paper_offload=0.8,
    paper_accept=0.8,
    paper_queue=0.2,
    central_usage_target=0.6,
    dispatch_s=0.0,
    escrow=1,
    duellists_judge=0,
    judges_least=1,
)
"""Terms in round figures that no change of conf/market moves."""
