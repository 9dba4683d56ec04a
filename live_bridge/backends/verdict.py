"""How emulated engines judge each other: every answer ends with a mark of its engine's quality, and a judge reads the marks.

What an emulated engine says means nothing, so that its quality would never show. With the mark, duels between emulated engines go
as market/duel.py's `vote` has them go in the simulator: by the logistic chance of the difference.
"""

import hashlib
import re

import orjson

from market.duel import FOR_A, vote

FENCED = re.compile(r"<<ANSWER ([AB]) [0-9a-f]+>>\n(.*?)\n<<END ANSWER", re.DOTALL)
"""As live_bridge/peers/judge.py writes a judge's prompt."""
MARK = re.compile(r"\[quality=(-?[0-9]+\.[0-9]+)\]\s*$")
SCALE = 1.0
"""Quality difference that moves the odds by e: conf/market/paper.yaml's judge_scale."""
ASKED = b"<<ANSWER A "


def mark(quality: float) -> bytes:
    """Write the last word of an engine's answers."""
    return b" [quality=%.4f]" % quality


def letter(body: bytes, seed: int) -> bytes | None:
    """Answer a judge's prompt: A or B; None when the request is none, or an answer in it bears no mark.

    seed   of the judge: another one may see it otherwise; the same one sees the same whichever answer is shown first
    """
    if ASKED not in body:
        return None
    answers = dict(FENCED.findall(_content(body)))
    marks = {name: MARK.search(text) for name, text in answers.items()}
    a, b = marks.get("A"), marks.get("B")
    if a is None or b is None:
        return None
    swapped = answers["B"] < answers["A"]
    first, second = (b, a) if swapped else (a, b)
    pair = f"{seed}\n{min(answers.values())}\n{max(answers.values())}"
    u = (int.from_bytes(hashlib.sha256(pair.encode()).digest()[:6], "big") + 0.5) / 2.0**48
    wins = vote(float(first[1]), float(second[1]), SCALE, u) == FOR_A
    return b"A" if wins != swapped else b"B"


def _content(body: bytes) -> str:
    """Text of all messages of a chat."""
    messages = orjson.loads(body).get("messages") or []
    return "\n".join(one["content"] for one in messages if isinstance(one, dict) and isinstance(one.get("content"), str))
