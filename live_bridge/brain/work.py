"""One piece of work that a provider has to do with: its own users' requests, copies and votes it asks for, guests."""

USER = "user"
"""An own user's request."""
COPY = "copy"
"""The second copy of an own request that is duelled, executed by a peer."""
GUEST = "guest"
"""Work of a peer that is executed here."""
JUDGE = "judge"
"""A vote that a peer has asked for, worked out here."""

COPY_MARK = ":copy"
"""Ends the id of a second copy: no id of a request ends so."""

OFFERED, PROMISED, QUEUED, RUNNING, REMOTE = "offered", "promised", "queued", "running", "remote"
"""Where work stands: on offer; accepted here, its content not yet here; in the own queue; in the engine; at a peer."""


class Work:
    """What is known of one piece of work; the content itself is nobody's business here."""

    __slots__ = (
        "arrival_s",
        "asked",
        "banned",
        "blocks",
        "deadline_s",
        "duel",
        "forecast",
        "generated",
        "id",
        "kind",
        "offered_s",
        "peer",
        "placed",
        "prompt",
        "state",
        "streamed",
        "waited",
    )

    def __init__(self, work_id: str, kind: str, prompt: int, forecast: int, arrival_s: float, deadline_s: float) -> None:
        """Take its size (tokens: of the prompt, forecast of the answer) and its times (market s)."""
        self.id = work_id
        self.kind = kind
        self.prompt = prompt
        self.forecast = forecast
        self.arrival_s = arrival_s
        self.deadline_s = deadline_s
        self.offered_s = arrival_s
        self.state = QUEUED
        self.placed = 0
        self.waited = 0
        self.asked = 0
        self.banned: list[int] = []  # roster places of peers that are not asked (again)
        self.peer = -1  # roster place of the executor, or of a guest's origin
        self.generated = 0.0  # tokens of the answer so far
        self.streamed = False  # whether `generated` is counted, not estimated
        self.blocks = 0
        self.duel: str | None = None


def losses(works: dict[str, Work], peer: str, place: int) -> list[list[str]]:
    """Tell that a peer is gone, and call back all that is there, by its roster place; the answer `broke` follows for each."""
    return [["lost", peer], *(["recall", work.id] for work in works.values() if work.state == REMOTE and work.peer == place)]
