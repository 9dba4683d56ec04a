"""What steers a provider: observation and action mask in, action out. Loads trained policies with onnxruntime alone.

Imported by a serving node, so it knows the observation and action layouts of the market, and no learner and no environment.
"""

import difflib
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import yaml
from numpy.typing import NDArray

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # onnxruntime reports to its maker unless told not to
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as onnx_errors

from market.action import (
    ACCEPT_LEVELS,
    ACTION_NAMES,
    ACTION_NVEC,
    ACTION_VERSION,
    COMMIT_LEVELS,
    FORWARD_LEVELS,
    IDLE,
    LEVELS,
    MASK_SIZE,
)
from market.observation import OBSERVATION_NAMES, OBSERVATION_SIZE, OBSERVATION_VERSION

CARD_VERSION = 1
CARD_FILE, POLICY_FILE = "card.yaml", "policy.onnx"
INPUT, OUTPUT = "observation", "logits"
FOLDER = "policies_trained"
HOUSE = Path(__file__).resolve().parents[1]
"""Where the shipped policies are, for programs that run elsewhere."""
ACTION_LEVELS = {"accept": ACCEPT_LEVELS, "forward": FORWARD_LEVELS, "commit": COMMIT_LEVELS}
HEADS = len(ACTION_NVEC)

Actions = NDArray[np.int64]
Brain = Literal["policy", "paper"]
Dispatch = Literal["market", "paper_central", "central"]
KINDS: dict[str, tuple[Brain, Dispatch]] = {
    "single": ("policy", "market"),
    "paper": ("paper", "market"),
    "paper_central": ("policy", "paper_central"),
    "central": ("policy", "central"),
    "uniform": ("policy", "market"),
}
"""Policies that have a name and no folder."""
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


class PolicyError(ValueError):
    """A policy cannot be found, read or asked; the text names place, rule, value and way out."""


class Policy(Protocol):
    """What acts for a provider."""

    name: str

    def act(self, observation: np.ndarray, mask: np.ndarray) -> Actions:
        """Choose an action for each row.

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
    most probable levels alone are another, worse one.
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
        self._draws = None if sample_seed is None else _Draws(sample_seed)
        self._session = _open(self.folder / POLICY_FILE, self.card)
        self._probe()

    def logits(self, observation: np.ndarray) -> NDArray[np.float32]:
        """Compute the logits of all three heads.

        observation  (n, OBSERVATION_SIZE) float32, finite
        returns      (n, MASK_SIZE) float32: 5 of accept, 5 of forward, 5 of commit
        errors       PolicyError for another shape, or for values that are not finite, going in or coming out
        """
        rows = np.ascontiguousarray(observation, np.float32)
        if rows.ndim != 2 or rows.shape[1] != OBSERVATION_SIZE:
            raise PolicyError(f"{self.name}: observation must have shape (n, {OBSERVATION_SIZE}), got {np.shape(observation)}")
        if not np.isfinite(rows).all():
            row, entry = np.argwhere(~np.isfinite(rows))[0]
            raise PolicyError(
                f"{self.name}: observation must be finite, got {rows[row, entry]} in row {row}, {OBSERVATION_NAMES[entry]}"
            )
        out: NDArray[np.float32] = self._session.run([OUTPUT], {INPUT: rows})[0]
        if not np.isfinite(out).all():
            raise PolicyError(
                f"{self.folder / POLICY_FILE}: logits must be finite, got {out[~np.isfinite(out)][0]}; export it again"
            )
        return out

    def act(self, observation: np.ndarray, mask: np.ndarray) -> Actions:
        """See Policy.act; as `logits` for errors."""
        logits = self.logits(observation)
        allowed = _allowed(mask, len(logits))
        score = logits.reshape(-1, HEADS, LEVELS)
        if self._draws is None:
            return _best(score, allowed)
        noise = next(self._draws).gumbel(size=score.shape)  # the greatest score after Gumbel noise is a draw of the softmax
        return _best(score + noise, allowed)

    def prepare(self) -> None:
        """See Policy.prepare."""
        if self._draws is not None:
            self._draws.prepare()

    def _probe(self) -> None:
        """Ask at the corners of the observation space, where a weight that is not a number shows."""
        corners = [np.full(OBSERVATION_SIZE, value) for value in (0.0, 1.0, -1.0, 0.5)]
        rows = np.stack([*corners, np.linspace(-1, 1, OBSERVATION_SIZE), np.linspace(1, -1, OBSERVATION_SIZE)])
        self.logits(rows.astype(np.float32))


def load(name_or_path: str | Path, *, seed: int = 0) -> Baseline:
    """Find a policy by name or folder.

    name_or_path  single, paper, paper_central, central, uniform, fixed:ACCEPT-FORWARD-COMMIT (levels 0..4), the name of a
                  folder in policies_trained, or the path of a folder
    seed          of the draws of `uniform` and of trained policies
    errors        PolicyError for a name that is not known and for a folder that cannot be used
    """
    text = str(name_or_path)
    if text in KINDS:
        return _named(text, seed)
    if text.startswith("fixed"):
        return Baseline(text, "policy", "market", LevelsPolicy(text, _levels(text)))
    folder = folder_of(text)
    if folder is not None:
        return learned(folder, sample_seed=seed)
    raise PolicyError(f"policies: there is no {text}; {_did_you_mean(text)}")


def folder_of(name: str) -> Path | None:
    """Find the folder of a policy: by its path, in FOLDER here, or among those that are shipped; None for a policy without one."""
    if name in KINDS or name.startswith("fixed"):
        return None
    places = (Path(name), Path(FOLDER) / name, HOUSE / name, HOUSE / FOLDER / name)
    return next((place for place in places if place.is_dir()), None)


def learned(folder: str | Path, *, sample_seed: int | None = 0) -> Baseline:
    """Load the trained policy of a folder as what steers all providers; errors as in OnnxPolicy."""
    policy = OnnxPolicy(folder, sample_seed=sample_seed)
    return Baseline(policy.name, "policy", "market", policy)


def read_card(folder: Path) -> dict[str, Any]:
    """Read a policy's card and check that this build can serve the policy.

    errors  PolicyError for a missing or damaged card and for another observation or action layout
    """
    path = folder / CARD_FILE
    if not path.is_file():
        raise PolicyError(f"{path}: does not exist; a policy is a folder with {POLICY_FILE} and {CARD_FILE}, written by train.py")
    try:
        card = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)  # the other takes 0.1 s
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise PolicyError(f"{path}: is not YAML ({str(error).splitlines()[0]}); export the policy again") from error
    way_out = f"retrain it or check out {_entry(path, card, 'commit')}"
    _expect(path, card, "format", CARD_VERSION, way_out)
    steps = _entry(path, card, "training.agent_steps")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
        raise PolicyError(f"{path}: training.agent_steps must be an integer >= 0, got {steps!r}; export the policy again")
    _expect(path, card, "observation.version", OBSERVATION_VERSION, way_out)
    _expect(path, card, "observation.names", list(OBSERVATION_NAMES), way_out)
    _expect(path, card, "action.version", ACTION_VERSION, way_out)
    for head in ACTION_NAMES:
        _expect(path, card, f"action.levels.{head}", list(ACTION_LEVELS[head]), way_out)
    return dict(card)


def _named(name: str, seed: int) -> Baseline:
    brain, dispatch = KINDS[name]
    return Baseline(name, brain, dispatch, UniformPolicy(seed) if name == "uniform" else LevelsPolicy(name))


def _levels(text: str) -> list[int]:
    """Read fixed:ACCEPT,FORWARD,COMMIT, or with dashes, which lists of names leave whole."""
    parts = text.removeprefix("fixed").removeprefix(":").replace("-", ",").split(",")
    if not text.startswith("fixed:") or len(parts) != HEADS or not all(part.strip().isdecimal() for part in parts):
        raise PolicyError(
            f"policies: {text} must be fixed:ACCEPT-FORWARD-COMMIT with levels in [0, {LEVELS - 1}], such as fixed:3-2-2"
        )
    return [int(part) for part in parts]


def _did_you_mean(text: str) -> str:
    """Name the closest policy, or all."""
    trained = [path.parent.name for path in sorted(Path(FOLDER).glob(f"[!.]*/{CARD_FILE}"))]
    known = [*KINDS, "fixed:3-2-2", *trained]
    close = difflib.get_close_matches(Path(text).name, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else f"choose from {', '.join(known)}, or give a folder"


def _open(path: Path, card: Mapping[str, Any]) -> Any:
    """Open an ONNX file in one thread: a policy is too small for more, and a node has other work."""
    if not path.is_file():
        raise PolicyError(f"{path}: does not exist; a policy is a folder with {POLICY_FILE} and {CARD_FILE}, written by train.py")
    content = path.read_bytes()
    expected = _entry(path.parent / CARD_FILE, card, "policy_sha256")
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
    for kind, nodes, name, width in (
        ("input", session.get_inputs(), INPUT, OBSERVATION_SIZE),
        ("output", session.get_outputs(), OUTPUT, MASK_SIZE),
    ):
        shapes = [(node.name, node.type, node.shape[1:], isinstance(node.shape[0], int)) for node in nodes]
        if shapes != [(name, "tensor(float)", [width], False)]:
            got = ", ".join(f"{node.name} {node.type} {node.shape}" for node in nodes)
            raise PolicyError(f"{path}: {kind} must be {name}, float of shape (n, {width}), got {got}; export it again")
    return session


def _entry(path: Path, card: Any, key: str) -> Any:
    """Look up key.key in a card."""
    value = card
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise PolicyError(f"{path}: has no {key}; export the policy again")
        value = value[part]
    return value


def _expect(path: Path, card: Any, key: str, expected: Any, way_out: str) -> None:
    """Refuse a card whose entry is not what this build makes."""
    found = _entry(path, card, key)
    if isinstance(expected, list) and isinstance(found, list) and len(found) == len(expected):
        for place, (a, b) in enumerate(zip(found, expected, strict=True)):
            if a != b:
                raise PolicyError(f"{path}: {key}[{place}] is {a}, this build makes {b}; {way_out}")
    elif isinstance(expected, list):
        count = len(found) if isinstance(found, list) else 0
        raise PolicyError(f"{path}: {key} has {count} entries, this build makes {len(expected)}; {way_out}")
    elif found != expected:
        raise PolicyError(f"{path}: {key} is {found}, this build makes {expected}; {way_out}")


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
