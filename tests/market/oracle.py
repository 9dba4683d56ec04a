"""The oracle of the serving tests: a vLLM-V1 scheduler, token by token, with explicit lists: for reading rather than speed."""

from dataclasses import dataclass, field


@dataclass
class Job:
    arrival_s: float
    prompt: int
    output: int
    computed: int = 0
    generated: int = 0
    blocks: int = 0
    prefill: int = 0  # tokens to compute before the next token comes out; after preemption, those of the answer too
    first_token_s: float = float("inf")
    finish_s: float = float("inf")
    preemptions: int = 0

    @property
    def total(self) -> int:
        return self.prompt + self.generated


@dataclass
class Oracle:
    """One engine; `profile` has the fields of market.serving.PROFILE."""

    profile: object
    clock: float = 0.0
    waiting: list[Job] = field(default_factory=list)
    running: list[Job] = field(default_factory=list)

    @property
    def free(self) -> int:
        return self.profile.kv_blocks - sum(job.blocks for job in self.running)

    def grow(self, job: Job, tokens: int) -> bool:
        """Give `job` blocks for `tokens` tokens, preempting from the back of the batch; False when it was itself preempted."""
        need = -(-tokens // 16) - job.blocks
        while need > self.free:
            victim = self.running.pop()
            victim.blocks = victim.computed = 0
            victim.preemptions += 1
            self.waiting.insert(0, victim)
            if victim is job:
                return False
        job.blocks += max(need, 0)
        return True

    def step(self) -> None:
        """Run one iteration."""
        p = self.profile
        budget = p.max_num_batched_tokens
        scheduled: list[tuple[Job, int]] = []
        preempted = False
        place = 0
        while place < len(self.running) and budget > 0:
            job = self.running[place]
            tokens = min(job.total - job.computed, budget)
            before = len(self.waiting)
            alive = self.grow(job, job.computed + tokens) if job.computed >= job.prefill else True
            preempted |= len(self.waiting) > before
            if not alive:
                break
            scheduled.append((job, tokens))
            budget -= tokens
            place += 1
        while self.waiting and budget > 0 and not preempted and len(self.running) < p.max_num_seqs:
            job = self.waiting[0]
            if -(-job.total // 16) > self.free:
                break
            self.waiting.pop(0)
            job.blocks = -(-job.total // 16)
            job.prefill = job.total
            self.running.append(job)
            tokens = min(job.total, budget)
            scheduled.append((job, tokens))
            budget -= tokens
        self.charge(scheduled)

    def charge(self, scheduled: list[tuple[Job, int]]) -> None:
        """Let the iteration's time pass and hand out its tokens."""
        p = self.profile
        decodes = [job for job, _ in scheduled if job.computed >= job.prefill]
        prefill = [(job, tokens) for job, tokens in scheduled if job not in decodes]
        tokens = sum(t for _, t in prefill)
        if scheduled:
            self.clock += max(p.a_s, p.a2_s + p.b_s * (tokens + len(decodes))) + p.c_s * len(decodes)
            self.clock += p.d_s * sum(job.computed + 1 for job in decodes)
            self.clock += p.q_s * sum(t * (job.computed + 0.5 * t) for job, t in prefill) + (p.e_s if prefill else 0.0)
        for job, count in scheduled:
            job.computed += count
            if job.computed == job.total:
                job.generated += 1
                if job.generated == 1:
                    job.first_token_s = self.clock
                if job.generated == job.output:
                    job.finish_s = self.clock
                    job.blocks = 0
                    self.running.remove(job)


def run(profile: object, jobs: list[Job]) -> None:
    """Serve `jobs`, sorted by arrival, to their ends."""
    oracle = Oracle(profile)
    pending = list(jobs)
    while pending or oracle.waiting or oracle.running:
        if not oracle.waiting and not oracle.running:
            oracle.clock = max(oracle.clock, pending[0].arrival_s)
        while pending and pending[0].arrival_s <= oracle.clock:
            oracle.waiting.append(pending.pop(0))
        oracle.step()
