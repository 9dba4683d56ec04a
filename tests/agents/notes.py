"""A tracker that tests of learners read."""

from collections.abc import Mapping

from agents.tracking import NoTracker


class Notes(NoTracker):
    """Remembers what was logged."""

    id = "run-1"

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.rows.append((step, dict(values)))
