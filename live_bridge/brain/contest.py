"""Duels that a provider has begun: both answers in, judges drawn by stake, votes in or time over, settled by the ledger.

Who wins and what moves is the ledger's to work out, by market/duel.py; here is only who is asked, and until when.
"""

from dataclasses import dataclass, field

from live_bridge.brain.belief import NONE, SELF, Belief
from live_bridge.brain.work import COPY, COPY_MARK, USER, Work
from market.duel import JUDGES

Command = list[object]


@dataclass
class Contest:
    """One duel under way."""

    id: str
    first: str  # id of the user's request
    copy: str  # id of its second copy
    opened_s: float
    executors: dict[str, int] = field(default_factory=dict)  # kind of work -> roster place of who answered
    judges: list[str] = field(default_factory=list)
    votes: dict[str, str] = field(default_factory=dict)


class Contests:
    """The duels of one provider by id; each is gone when its time is over, at the latest."""

    def __init__(self, belief: Belief, deadline_s: float) -> None:
        """Take the beliefs to draw judges by, and the market seconds after which a duel is settled with the votes in hand."""
        self._belief = belief
        self._deadline_s = deadline_s
        self.open: dict[str, Contest] = {}

    def begin(self, work: Work, now: float) -> Work:
        """Make the second copy of `work`, which a peer has just taken; it may go to neither that peer nor home."""
        copy = Work(f"{work.id}{COPY_MARK}", COPY, work.prompt, work.forecast, work.arrival_s, work.deadline_s)
        copy.banned = [SELF, work.peer]
        copy.duel = work.duel = work.id
        self.open[work.id] = Contest(work.id, work.id, copy.id, now)
        return copy

    def answered(self, work: Work, ok: int) -> list[Command]:
        """One of the two is over; with both answers in, judges are drawn."""
        contest = self.open.get(work.duel) if work.duel else None
        if contest is None or work.kind not in {USER, COPY}:
            return []
        if not ok or work.peer < 0:
            del self.open[contest.id]
            return [["duel_off", contest.id]]
        contest.executors[work.kind] = work.peer
        return self._draw(contest) if len(contest.executors) == 2 else []

    def _draw(self, contest: Contest) -> list[Command]:
        """Draw judges by stake, never the origin or a duellist."""
        belief = self._belief
        a, b = contest.executors[USER], contest.executors[COPY]
        banned = [SELF, a, b]
        for _seat in range(min(belief.terms.judges, JUDGES)):
            place = belief.draw(banned)
            if place == NONE:
                break
            banned.append(place)
            contest.judges.append(belief.ids[place])
        if a == b or not contest.judges:
            del self.open[contest.id]
            return [["duel_off", contest.id]]
        fee: int = belief.terms.judge_fee_micro
        return [["judge", contest.id, judge, fee] for judge in contest.judges]

    def vote(self, duel: str, judge: str, verdict: str) -> list[Command]:
        """Note a verdict (A, B, abstain, absent); the first of a judge counts. With all in, the duel is settled."""
        contest = self.open.get(duel)
        if contest is None or judge not in contest.judges or judge in contest.votes:
            return []
        contest.votes[judge] = verdict
        return self._settle(contest) if len(contest.votes) == len(contest.judges) else []

    def tick(self, now: float) -> list[Command]:
        """End the duels whose time is over: with votes in hand they are settled, without they are called off."""
        out: list[Command] = []
        for contest in [one for one in self.open.values() if now - one.opened_s >= self._deadline_s]:
            if any(verdict in {"A", "B"} for verdict in contest.votes.values()):
                out += self._settle(contest)
            else:
                del self.open[contest.id]
                out.append(["duel_off", contest.id])
        return out

    def _settle(self, contest: Contest) -> list[Command]:
        """Hand the duel to the ledger: who judged, and how; who did not vote is absent."""
        del self.open[contest.id]
        ids = self._belief.ids
        votes = [[judge, contest.votes.get(judge, "absent")] for judge in contest.judges]
        return [["duel", contest.id, ids[contest.executors[USER]], ids[contest.executors[COPY]], votes]]
