"""What a picture of the market shows: the truth of one network at one moment, gathered from the tables of a batch."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from envs.wwwserve.batch import Batch
from envs.wwwserve.state import JOB, NET, REMOTE, RUNNING
from market.observation import OBSERVATION_NAMES
from market.provider import NODE
from market.rule import to_array
from market.serving import ENGINE

MEMORY_S = 120.0
"""Attainment is shown over about the last two minutes."""
LEAST_DUE = 0.05
"""Requests due, faded by age, below which no attainment is shown."""
LOAD = OBSERVATION_NAMES.index("work_ahead")
USAGE = OBSERVATION_NAMES.index("kv_usage")


class Scene(NamedTuple):
    """One network; arrays are (providers,) unless said."""

    title: str
    now_s: float
    horizon_s: float
    online: NDArray[np.bool_]
    load: NDArray[np.float32]  # work ahead over SLO, squashed into [0, 1]
    kv_usage: NDArray[np.float32]  # share
    running: NDArray[np.int64]  # requests in the engine's batch
    waiting: NDArray[np.int64]  # requests in the engine's and the provider's own queue
    guests: NDArray[np.int64]  # delegated requests here
    away: NDArray[np.int64]  # own requests at peers
    attainment: NDArray[np.float64]  # share of own requests due lately that were answered in time; NaN when none was due
    market_attainment: float  # the same over all providers
    credits: dict[str, NDArray[np.float64]]  # credit, stake, escrow, unbonding, wealth
    flows: NDArray[np.int64]  # (providers, providers) requests of row's provider that column's provider executes


class Course:
    """Follows one network of a batch from step to step, for what a single moment does not tell."""

    def __init__(self, batch: Batch, network: int = 0) -> None:
        self.batch, self.network = batch, network
        self._keep = float(np.exp(-batch.scenario.control_s / MEMORY_S))
        self._due = np.zeros((2, batch.providers))

    def restart(self) -> None:
        """Forget the episode before."""
        self._due[:] = 0.0

    def note(self) -> None:
        """Take in the step that has just passed."""
        if self.batch.truncated[self.network] and self.batch.autoreset:
            self.restart()
            return
        self._due *= self._keep
        self._due += self.batch.reward_parts[self.network, :, :2].T

    def _rows(self, table: str, dtype: np.dtype, count: int) -> NDArray[Any]:
        return to_array(getattr(self.batch.world, table)[self.network * count : (self.network + 1) * count], dtype)

    def scene(self) -> Scene:
        """Gather what there is now."""
        batch, n = self.batch, self.network
        node, engine = (self._rows(name, dtype, batch.providers) for name, dtype in (("node", NODE), ("engine", ENGINE)))
        net = self._rows("net", NET, 1)[0]
        seen = batch.observations[n]
        attained, missed = self._due
        due = np.append(attained + missed, self._due.sum())
        met = np.append(attained, attained.sum())
        attainment = np.divide(met, due, out=np.full(len(due), np.nan), where=due > LEAST_DUE)
        return Scene(
            title=batch.scenario.name,
            now_s=float(net["step"]) * batch.scenario.control_s,
            horizon_s=batch.scenario.horizon_s,
            online=node["online"] == 1,
            load=seen[:, LOAD].copy(),
            kv_usage=seen[:, USAGE].copy(),
            running=engine["running"],
            waiting=engine["waiting"] + node["queued"],
            guests=node["guests"],
            away=node["away"],
            attainment=attainment[:-1],
            market_attainment=float(attainment[-1]),
            credits={name: values[n] for name, values in batch.accounts().items()},
            flows=self._flows(),
        )

    def _flows(self) -> NDArray[np.int64]:
        providers = self.batch.providers
        jobs = self._rows("request", JOB, self.batch.scenario.requests_max)
        jobs = jobs[(jobs["origin"] != jobs["executor"]) & np.isin(jobs["state"], (REMOTE, RUNNING)) & (jobs["executor"] >= 0)]
        flows = np.zeros((providers, providers), np.int64)
        np.add.at(flows, (jobs["origin"], jobs["executor"]), 1)
        return flows
