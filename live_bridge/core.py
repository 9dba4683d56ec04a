"""The one place where an event meets the mind: it is journalled with the commands it leads to, then they are carried out."""

from collections.abc import Callable
from typing import Any, Protocol

from live_bridge.brain import Brain
from live_bridge.clock import Clock
from live_bridge.job import LOCAL, Job


class Journal(Protocol):
    """Where events and commands are written before they take effect."""

    def write(self, line: list[Any]) -> None:
        """Append one line."""


class Core:
    """The mind, the clock, the journal, and the jobs by id."""

    def __init__(self, brain: Brain, clock: Clock, journal: Journal, network: str) -> None:
        self.brain = brain
        self.network = network
        self.clock = clock
        self.jobs: dict[str, Job] = {}
        self._journal = journal
        self._serial = 0
        self._prefix = f"{brain.setup.me[:12]}.{brain.setup.incarnation}"
        self.carry_out: dict[str, Callable[..., None]] = {"start": self._start}
        """What carries a command out, by its name; each is quick: it starts tasks, it does not wait."""

    def serial(self) -> str:
        """A new id for a piece of own work: unique among all nodes and lives of this node."""
        self._serial += 1
        return f"{self._prefix}.{self._serial}"

    def emit(self, name: str, *facts: Any) -> None:
        """Let an event happen now."""
        event = [name, self.clock.now(), *facts]
        commands = self.brain.on(event)
        self._journal.write([event, commands])
        for command in commands:
            self.carry_out[command[0]](*command[1:])

    def _start(self, job_id: str) -> None:
        job = self.jobs.get(job_id)
        if job is not None:
            job.decree(LOCAL)
