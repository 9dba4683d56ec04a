"""What steers a provider: observation and action mask in, action out. Loads trained policies with onnxruntime alone.

Imported by a serving node, so it knows the observation and action layouts of the market, and no learner and no environment.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # onnxruntime reports to its maker unless told not to
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as onnx_errors

from agents.card import CARD_FILE, POLICY_FILE, Memory, PolicyError, entry_of, memory_of, read_card
from agents.names import Brain, Dispatch, find
from market.action import ACTION_NAMES, ACTION_NVEC, IDLE, LEVELS, MASK_SIZE
from market.observation import OBSERVATION_NAMES, OBSERVATION_SIZE

INPUT, OUTPUT = "observation", "logits"
MEMORY, NEXT_MEMORY = "memory", "next_memory"
"""What a policy that remembers takes and gives, too."""
HEADS = len(ACTION_NVEC)

Actions = NDArray[np.int64]
ORT_ERRORS = (
    onnx_errors.Fail,
    onnx_errors.InvalidArgument,
    onnx_errors.InvalidGraph,
    onnx_errors.InvalidProtobuf,
    onnx_errors.NoModel,
    onnx_errors.NoSuchFile,
    onnx_errors.NotImplemented,
    onnx_errors.RuntimeException,
)
"""What onnxruntime raises for a file that it cannot run; each derives from Exception alone."""


class Policy(Protocol):
    """What acts for a provider."""

    name: str

    def begin(self, control_s: float) -> None:
        """Begin an episode: whatever is remembered of the one before is gone.

        control_s    s between two decisions of a row
        """

    def act(self, observation: np.ndarray, mask: np.ndarray) -> Actions:
        """Choose an action for each row; within an episode each row is one provider's.

        observation  (n, OBSERVATION_SIZE) float32
        mask         (n, MASK_SIZE) int8 or bool, 1 = possible
        returns      (n, 3) int64 levels of accept, forward, commit; never one that the mask forbids
        """

    def prepare(self) -> None:
        """Do beforehand what the next answer needs, whatever it is asked: while nobody waits. No answer depends on it."""


@dataclass(frozen=True)
class Baseline:
    """Who steers the providers of a market, by name: a policy, the paper's rules, or a scheduler that replaces the market."""

    name: str
    brain: Brain  # "paper": providers follow the paper's rules, whatever the policy says
    dispatch: Dispatch
    policy: Policy
    visitors: "Mapping[int, Baseline]" = field(default_factory=dict)  # provider -> who steers it instead; see agents.seats


class LevelsPolicy:
    """The same levels for everybody, always; a level that the mask forbids becomes 0, the idle one."""

    def __init__(self, name: str, levels: Sequence[int] = IDLE) -> None:
        """Take three levels of accept, forward, commit.

        errors  PolicyError for levels that do not exist
        """
        whole = all(isinstance(level, int | np.integer) and 0 <= level < LEVELS for level in levels)
        if len(levels) != HEADS or not whole:
            raise PolicyError(
                f"{name}: levels must be {HEADS} integers in [0, {LEVELS - 1}] (accept, forward, commit), got {list(levels)}"
            )
        self.name = name
        self.levels = tuple(int(level) for level in levels)

    def begin(self, control_s: float) -> None:
        """See Policy.begin: nothing is remembered."""

    def act(self, observation: np.ndarray, mask: np.ndarray) -> Actions:
        """See Policy.act."""
        allowed = _allowed(mask, len(observation))
        wanted = np.broadcast_to(np.array(self.levels, np.int64), (len(allowed), HEADS))
        possible = np.take_along_axis(allowed, wanted[..., None], axis=2)[..., 0]
        return np.where(possible, wanted, allowed.argmax(axis=2))

    def prepare(self) -> None:
        """See Policy.prepare: nothing is needed."""


class _Draws:
    """Random numbers of which row i of call k is the same however many rows are asked for."""

    def __init__(self, seed: int) -> None:
        self._seed, self._call = seed, 0
        self._ahead: np.random.Generator | None = None

    def prepare(self) -> np.random.Generator:
        """Make the generator of the next call: a third of the time that a policy takes to answer one observation."""
        if self._ahead is None:
            self._call += 1
            self._ahead = np.random.default_rng((self._seed, self._call))
        return self._ahead

    def __next__(self) -> np.random.Generator:
        found, self._ahead = self.prepare(), None
        return found


class UniformPolicy:
    """Every possible level with the same chance, each head on its own."""

    def __init__(self, seed: int) -> None:
        """Take the seed of the draws; two policies of one seed, asked the same, answer the same, row by row."""
        self.name = "uniform"
        self._draws = _Draws(seed)

    def begin(self, control_s: float) -> None:
        """See Policy.begin: nothing is remembered, and the draws go on."""

    def act(self, observation: np.ndarray, mask: np.ndarray) -> Actions:
        """See Policy.act; drawn at random."""
        allowed = _allowed(mask, len(observation))
        return _best(next(self._draws).random(allowed.shape), allowed)

    def prepare(self) -> None:
        """See Policy.prepare."""
        self._draws.prepare()


class OnnxPolicy:
    """A trained policy on disk: FOLDER/NAME/{policy.onnx, card.yaml}.

    Its actions are drawn, from a seed, as they were in training: what a market teaches its players is a mixed strategy, and the
    most probable levels alone are another, worse one. A memory moves on at the pace at which it learned to, whatever that of
    the decisions: those in between are made as if it moved now.
    """

    def __init__(self, folder: str | Path, *, sample_seed: int | None = 0) -> None:
        """Load and check a policy.

        folder       holds policy.onnx and card.yaml
        sample_seed  draw actions from the policy's distribution with this seed; None: take the most probable levels
        errors       PolicyError when a file is missing, damaged, of another layout, or gives values that are not finite
        """
        self.folder = Path(folder)
        self.name = self.folder.resolve().name
        self.card = read_card(self.folder)
        self.memory = memory_of(self.card)
        self._draws = None if sample_seed is None else _Draws(sample_seed)
        self._session = _open(self.folder / POLICY_FILE, self.card, self.memory)
        self._held: NDArray[np.float32] | None = None  # (n, units), each row's memory; None before the first decision
        self._calls = self._every = 0  # decisions of this episode; of how many the memory moves in one; 0: none has begun
        self._probe()

    def begin(self, control_s: float) -> None:
        """See Policy.begin; the draws go on."""
        if self.memory:
            self._every = max(1, round(self.memory.control_s / control_s))
        self._held, self._calls = None, 0

    def logits(self, observation: np.ndarray) -> NDArray[np.float32]:
        """Compute the logits of all three heads, with nothing remembered.

        observation  (n, OBSERVATION_SIZE) float32, finite
        returns      (n, MASK_SIZE) float32: 5 of accept, 5 of forward, 5 of commit
        errors       PolicyError for another shape, or for values that are not finite, going in or coming out
        """
        return self.step(observation, None)[0]

    def step(
        self, observation: np.ndarray, held: NDArray[np.float32] | None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Compute logits, and the memory that has moved on: (n, memory.units); None of a policy without.

        observation  as in `logits`, with its errors
        held         (n, memory.units) float32, the memory; None: nothing is remembered
        """
        rows = np.ascontiguousarray(observation, np.float32)
        if rows.ndim != 2 or rows.shape[1] != OBSERVATION_SIZE:
            raise PolicyError(f"{self.name}: observation must have shape (n, {OBSERVATION_SIZE}), got {np.shape(observation)}")
        if not np.isfinite(rows).all():
            row, entry = np.argwhere(~np.isfinite(rows))[0]
            raise PolicyError(
                f"{self.name}: observation must be finite, got {rows[row, entry]} in row {row}, {OBSERVATION_NAMES[entry]}"
            )
        if self.memory is None:
            return self._finite(self._session.run([OUTPUT], {INPUT: rows})[0], OUTPUT), None
        if held is None:
            held = np.zeros((len(rows), self.memory.units), np.float32)
        logits, after = self._session.run([OUTPUT, NEXT_MEMORY], {INPUT: rows, MEMORY: held})
        return self._finite(logits, OUTPUT), self._finite(after, NEXT_MEMORY)

    def _finite(self, out: NDArray[np.float32], name: str) -> NDArray[np.float32]:
        if not np.isfinite(out).all():
            raise PolicyError(
                f"{self.folder / POLICY_FILE}: {name} must be finite, got {out[~np.isfinite(out)][0]}; export it again"
            )
        return out

    def act(self, observation: np.ndarray, mask: np.ndarray) -> Actions:
        """See Policy.act; as `logits` for errors, and PolicyError for a policy that remembers and is not told of the episode."""
        if self.memory:
            self._check_episode(len(observation))
        logits, after = self.step(observation, self._held)
        allowed = _allowed(mask, len(logits))
        if self.memory:
            self._held = after if self._calls % self._every == 0 else self._held
            self._calls += 1
        score = logits.reshape(-1, HEADS, LEVELS)
        if self._draws is None:
            return _best(score, allowed)
        noise = next(self._draws).gumbel(size=score.shape)  # the greatest score after Gumbel noise is a draw of the softmax
        return _best(score + noise, allowed)

    def _check_episode(self, count: int) -> None:
        """Refuse rows whose memory is not known."""
        if self._every == 0:
            raise PolicyError(f"{self.name}: remembers, so it must hear where an episode begins; call begin(control_s) before act")
        if self._held is not None and len(self._held) != count:
            raise PolicyError(
                f"{self.name}: remembers {len(self._held)} rows of this episode, and is asked about {count}; ask about the same "
                "rows until the episode ends, and call begin(control_s) where another begins"
            )

    def prepare(self) -> None:
        """See Policy.prepare."""
        if self._draws is not None:
            self._draws.prepare()

    def _probe(self) -> None:
        """Ask at the corners of the observation space, where a weight that is not a number shows."""
        corners = [np.full(OBSERVATION_SIZE, value) for value in (0.0, 1.0, -1.0, 0.5)]
        rows = np.stack([*corners, np.linspace(-1, 1, OBSERVATION_SIZE), np.linspace(1, -1, OBSERVATION_SIZE)])
        _, held = self.step(rows.astype(np.float32), None)
        if held is not None:
            self.step(rows.astype(np.float32), held)


def load(name_or_path: str | Path, *, seed: int = 0) -> Baseline:
    """Find a policy by name or folder.

    name_or_path  single, paper, paper_central, central, uniform, fixed:ACCEPT-FORWARD-COMMIT (levels 0..4), the name of a
                  folder in policies_trained, or the path of a folder
    seed          of the draws of `uniform` and of trained policies
    errors        PolicyError for a name that is not known and for a folder that cannot be used
    """
    text = str(name_or_path)
    found = find(text)
    if found.folder is not None:
        return learned(found.folder, sample_seed=seed)
    policy = UniformPolicy(seed) if text == "uniform" else LevelsPolicy(text, found.levels or IDLE)
    return Baseline(text, found.brain, found.dispatch, policy)


def learned(folder: str | Path, *, sample_seed: int | None = 0) -> Baseline:
    """Load the trained policy of a folder as what steers all providers; errors as in OnnxPolicy."""
    policy = OnnxPolicy(folder, sample_seed=sample_seed)
    return Baseline(policy.name, "policy", "market", policy)


def _open(path: Path, card: Mapping[str, Any], memory: Memory | None) -> Any:
    """Open an ONNX file in one thread: a policy is too small for more, and a node has other work."""
    if not path.is_file():
        raise PolicyError(f"{path}: does not exist; a policy is a folder with {POLICY_FILE} and {CARD_FILE}, written by train.py")
    content = path.read_bytes()
    expected = entry_of(path.parent / CARD_FILE, card, "policy_sha256")
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise PolicyError(
            f"{path}: is cut off or not the file of its card (sha256 {found[:12]}, card {str(expected)[:12]}); export it again"
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except ORT_ERRORS as error:
        raise PolicyError(f"{path}: is not a whole ONNX file ({str(error).splitlines()[0]}); export it again") from error
    remembered = memory.units if memory else 0
    for kind, nodes, widths in (
        ("input", session.get_inputs(), {INPUT: OBSERVATION_SIZE, MEMORY: remembered}),
        ("output", session.get_outputs(), {OUTPUT: MASK_SIZE, NEXT_MEMORY: remembered}),
    ):
        shapes = [(node.name, node.type, node.shape[1:], isinstance(node.shape[0], int)) for node in nodes]
        wanted = {name: width for name, width in widths.items() if width}
        if shapes != [(name, "tensor(float)", [width], False) for name, width in wanted.items()]:
            rule = " and ".join(f"{name}, float of shape (n, {width})" for name, width in wanted.items())
            got = ", ".join(f"{node.name} {node.type} {node.shape}" for node in nodes)
            raise PolicyError(f"{path}: {kind} must be {rule}, got {got}; export it again")
    return session


def _allowed(mask: np.ndarray, count: int) -> NDArray[np.bool_]:
    """Check an action mask: (n, MASK_SIZE) -> (n, 3, 5) bool; every head must have a possible level."""
    if np.shape(mask) != (count, MASK_SIZE):
        raise PolicyError(f"mask must have shape ({count}, {MASK_SIZE}), as many rows as the observation, got {np.shape(mask)}")
    allowed: NDArray[np.bool_] = np.asarray(mask != 0).reshape(count, HEADS, LEVELS)
    if not allowed.any(axis=2).all():
        row, head = np.argwhere(~allowed.any(axis=2))[0]
        raise PolicyError(f"mask must leave a level of {ACTION_NAMES[head]} possible, got none in row {row}")
    return allowed


def _best(score: np.ndarray, allowed: NDArray[np.bool_]) -> Actions:
    """Take the possible level of the highest score: (n, 3, 5) -> (n, 3)."""
    best: Actions = np.where(allowed, score, -np.inf).argmax(axis=2).astype(np.int64, copy=False)
    return best
