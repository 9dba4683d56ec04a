"""What a provider knows of its engine: what it has handed in itself, corrected upwards by what the engine says.

A reading that is missing or late never makes an engine look idle: own work in flight always counts.
"""

from typing import Any

from live_bridge.brain.work import Work
from market.decoding import ENGINE, open_engine
from market.rule import records
from market.serving import blocks_for, decode_s


class EngineView:
    """An ENGINE record, as far as forecasts and observations read it, kept up to date from own work and readings."""

    def __init__(self, profile: Any) -> None:
        """Take the PROFILE record of the engine."""
        self.profile = profile
        self.record = records(ENGINE, 1)[0]
        open_engine(self.record, 0.0)
        self.works: dict[str, Work] = {}
        self._peak = 0  # most own work in flight since the last reading
        self._foreign = 0  # requests in the engine that are not ours
        self._foreign_waiting = 0
        self._told_usage = 0.0
        self._plain = True  # the record is the sum over own work, nothing added, nothing counted as waiting

    def start(self, work: Work) -> None:
        """Note that `work` was handed in."""
        self.works[work.id] = work
        work.generated = 0.0
        work.blocks = blocks_for(work.prompt)
        self._peak = max(self._peak, len(self.works))
        record = self.record
        record.running += 1
        record.kv_tokens += work.prompt
        record.blocks_used += work.blocks
        record.due_tokens += max(work.forecast, 1)
        self._overflow()

    def end(self, work: Work) -> None:
        """Note that `work` has left the engine."""
        if self.works.pop(work.id, None) is None:
            return
        if not self._plain:
            self.refresh()
            return
        record = self.record
        record.running -= 1
        record.kv_tokens -= work.prompt + int(work.generated)
        record.blocks_used -= work.blocks
        record.due_tokens -= max(work.forecast - int(work.generated), 1)

    def reading(self, running: int, waiting: int, usage: float) -> None:
        """Take a fresh reading: requests running and waiting in the engine, share of KV blocks in use."""
        self._foreign = max(running + waiting - self._peak, 0)
        self._foreign_waiting = min(waiting, self._foreign)
        self._told_usage = usage
        self._peak = len(self.works)
        self.refresh()

    def forget_reading(self) -> None:
        """The last reading is too old to be believed: own work alone counts from here."""
        self.reading(0, 0, 0.0)

    def progress(self, span_s: float, counted: dict[str, int]) -> None:
        """Let `span_s` (market s) pass: `counted` tokens where they are known, the profile's rate where not."""
        record = self.record
        rate = 1.0 / decode_s(self.profile, max(record.running, 1), record.kv_tokens)
        for work in self.works.values():
            tokens = counted.get(work.id)
            if tokens is not None:
                work.generated = float(tokens)
            else:
                work.generated = min(work.generated + span_s * rate, max(work.forecast - 1.0, 0.0))
            work.blocks = blocks_for(work.prompt + int(work.generated))
        self.refresh()

    def refresh(self) -> None:
        """Work the record out anew from all that is in flight."""
        record = self.record
        works = self.works.values()
        record.running = len(self.works)
        record.kv_tokens = sum(work.prompt + int(work.generated) for work in works)
        record.blocks_used = sum(work.blocks for work in works)
        record.due_tokens = sum(max(work.forecast - int(work.generated), 1) for work in works)
        record.waiting = record.waiting_prompt = record.waiting_output = 0
        self._plain = not self._foreign and round(self._told_usage * self.profile.kv_blocks) <= record.blocks_used
        if not self._plain:
            self._add_foreign()
        self._overflow()

    def _add_foreign(self) -> None:
        """Count what others have put into the engine as requests like ours."""
        record = self.record
        known = max(record.running, 1)
        prompt = record.kv_tokens // known if record.running else 0
        due = record.due_tokens // known if record.running else 0
        running = self._foreign - self._foreign_waiting
        record.running += running
        record.kv_tokens += running * prompt
        record.due_tokens += running * due
        record.waiting += self._foreign_waiting
        record.waiting_prompt += self._foreign_waiting * prompt
        record.waiting_output += self._foreign_waiting * due
        record.blocks_used = max(record.blocks_used, round(self._told_usage * self.profile.kv_blocks))

    def _overflow(self) -> None:
        """What does not fit in the engine's places and blocks is waiting in it: the newest first."""
        record = self.record
        profile = self.profile
        if record.running <= profile.max_num_seqs and record.blocks_used <= profile.kv_blocks:
            return
        self._plain = False
        for work in reversed(self.works.values()):
            if record.running <= profile.max_num_seqs and record.blocks_used <= profile.kv_blocks:
                break
            record.running -= 1
            record.kv_tokens -= work.prompt + int(work.generated)
            record.blocks_used -= work.blocks
            record.due_tokens -= max(work.forecast - int(work.generated), 1)
            record.waiting += 1
            record.waiting_prompt += work.prompt
            record.waiting_output += max(work.forecast - int(work.generated), 1)
        record.running = min(record.running, profile.max_num_seqs)
        record.blocks_used = min(record.blocks_used, profile.kv_blocks)
