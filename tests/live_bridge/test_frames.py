"""Answers of executors: the same bytes however they are cut, and a receipt that fits them or none at all."""

import hashlib
import random
import tracemalloc
from collections.abc import Iterator

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from live_bridge.identity import Identity
from live_bridge.peers.frames import (
    DATA,
    END,
    ERROR,
    HEAD,
    LONGEST,
    PREFIX,
    REASONS,
    Decoder,
    Encoder,
    Failed,
    Frame,
    FrameError,
    Head,
    Receipt,
    is_signed,
    payable,
)

NET, HOLD = "test", "hold-1"
EXECUTOR, OTHER = Identity(bytes([1]) * 32), Identity(bytes([2]) * 32)
HEADERS = [(b"content-type", b"text/event-stream"), (b"x-request-id", b"caf\xe9")]
PIECES = [
    b'data: {"a": 1}\n\n',
    b"",
    "data: Bäcker 🥐\r\n\r\n".encode()[:9],
    b": comment\n\n",
    bytes(range(256)),
    b"data: [DONE]\n\n",
]


def encoder(identity: Identity = EXECUTOR, network: str = NET, hold: str = HOLD) -> Encoder:
    return Encoder(identity, network, hold)


def decoder(most_bytes: int = 1 << 20) -> Decoder:
    return Decoder(NET, HOLD, EXECUTOR.public, most_bytes)


def answer(pieces: list[bytes], tokens: int = 7, by: Encoder | None = None) -> bytes:
    by = by or encoder()
    return by.head(200, HEADERS) + b"".join([by.data(piece) for piece in pieces]) + by.end(tokens)


def cuts(raw: bytes, sizes: Iterator[int]) -> Iterator[bytes]:
    at = 0
    while at < len(raw):
        size = next(sizes)
        yield raw[at : at + size]
        at += size


def whole(frames: list[Frame]) -> bytes:
    return b"".join(frame for frame in frames if isinstance(frame, bytes))


def reason_of(raw: bytes, most_bytes: int = 1 << 20) -> str:
    reader = decoder(most_bytes)
    with pytest.raises(FrameError, match="answer of a peer: ") as caught:
        reader.feed(raw)
        reader.finish()
    assert caught.value.reason in REASONS
    return caught.value.reason


def frame(kind: int, content: object) -> bytes:
    raw = content if isinstance(content, bytes) else orjson.dumps(content)
    return PREFIX.pack(kind, len(raw)) + raw


def test_an_answer_arrives_as_it_was_sent() -> None:
    reader = decoder()
    head, *pieces, receipt = reader.feed(answer(PIECES))
    reader.finish()
    assert head == Head(200, HEADERS)
    assert pieces == [piece for piece in PIECES if piece]
    assert isinstance(receipt, Receipt) and (receipt.hold_id, receipt.tokens) == (HOLD, 7)
    assert receipt.digest == hashlib.sha256(b"".join(PIECES)).digest()
    assert is_signed(receipt, NET, EXECUTOR.public) and not is_signed(receipt, NET, OTHER.public)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6, 7, 64, 1000])
def test_an_answer_is_the_same_however_it_is_cut(size: int) -> None:
    reader, found = decoder(), []
    for chunk in cuts(answer(PIECES), iter(lambda: size, 0)):
        found += reader.feed(chunk)
    reader.finish()
    assert found[0] == Head(200, HEADERS) and isinstance(found[-1], Receipt)
    assert whole(found) == b"".join(PIECES)


@given(st.lists(st.binary(max_size=300), max_size=8), st.randoms(use_true_random=False))
def test_any_answer_survives_any_cuts(pieces: list[bytes], chance: random.Random) -> None:
    reader, found = decoder(), []
    for chunk in cuts(answer(pieces), iter(lambda: chance.randint(1, 40), 0)):
        found += reader.feed(chunk)
    reader.finish()
    assert whole(found) == b"".join(pieces)
    assert [type(frame) for frame in found if not isinstance(frame, bytes)] == [Head, Receipt]


def test_bytes_are_given_on_before_their_frame_is_whole() -> None:
    writer, reader = encoder(), decoder(1 << 24)
    reader.feed(writer.head(200, []))
    raw = writer.data(bytes(1 << 20))
    sent = seen = 0
    for chunk in cuts(raw, iter(lambda: 65536, 0)):
        sent += len(chunk)
        seen += len(whole(reader.feed(chunk)))
        assert seen == sent - PREFIX.size
    assert seen == 1 << 20


def test_a_piece_that_fills_a_chunk_is_not_copied() -> None:
    writer, reader = encoder(), decoder(1 << 24)
    reader.feed(writer.head(200, []))
    raw = writer.data(bytes(1 << 20))
    reader.feed(raw[: PREFIX.size])
    chunk = raw[PREFIX.size : PREFIX.size + 65536]
    assert reader.feed(chunk)[0] is chunk


def test_a_decoder_keeps_nothing_of_a_long_answer() -> None:
    writer, reader = encoder(), decoder(1 << 30)
    reader.feed(writer.head(200, []))
    chunks = list(cuts(writer.data(bytes(8 << 20)), iter(lambda: 50_000, 0)))
    tracemalloc.start()
    try:
        for chunk in chunks:
            reader.feed(chunk)
        assert tracemalloc.get_traced_memory()[0] < 20_000
    finally:
        tracemalloc.stop()


def test_an_executor_can_say_that_it_failed() -> None:
    writer, reader = encoder(), decoder()
    assert reader.feed(writer.error("backend_died", 0)) == [Failed("backend_died", 0)]
    reader.finish()
    writer, reader = encoder(), decoder()
    found = reader.feed(writer.head(200, []) + writer.data(b"half an ans") + writer.error("backend_died", 3))
    assert found == [Head(200, []), b"half an ans", Failed("backend_died", 3)]
    reader.finish()


# M6: pay only for delivered work


def test_an_answer_that_breaks_off_anywhere_is_truncated() -> None:
    raw = answer(PIECES)
    for cut in range(len(raw)):
        reader = decoder()
        found = reader.feed(raw[:cut])
        assert not any(isinstance(frame, Receipt) for frame in found)
        assert whole(found) == b"".join(PIECES)[: len(whole(found))], "what did arrive is the beginning of the answer"
        with pytest.raises(FrameError, match="breaks off") as caught:
            reader.finish()
        assert caught.value.reason == "truncated"


def test_a_receipt_for_other_bytes_is_refused() -> None:
    honest, lying = encoder(), encoder()
    lying.data(b"the answer as the executor says it was")
    raw = honest.head(200, []) + honest.data(b"the answer as it came") + lying.end(7)
    assert reason_of(raw) == "digest"
    left_out = [answer([b"one ", b"two ", b"three"])]
    assert reason_of(left_out[0].replace(PREFIX.pack(DATA, 4) + b"two ", b"")) == "digest"


@pytest.mark.parametrize("flip", [0x01, 0x20, 0x80])
def test_no_changed_byte_of_an_answer_gets_past_its_receipt(flip: int) -> None:
    """Head and frame lengths are not signed: a change there shows as another head, or as broken framing."""
    writer = encoder()
    head = writer.head(200, [])
    raw = bytearray(writer.data(b"the answer") + writer.data(b" in two pieces") + writer.end(7))
    for k in range(len(raw)):
        raw[k] ^= flip
        reader = decoder()
        reader.feed(head)
        with pytest.raises(FrameError):
            reader.feed(bytes(raw))
            reader.finish()
        raw[k] ^= flip


def test_a_receipt_of_another_node_network_or_hold_is_refused() -> None:
    for by in (encoder(OTHER), encoder(network="other"), encoder(hold="hold-2")):
        assert reason_of(answer([b"words"], by=by)) == "receipt"
    renamed = encoder(hold="hold-2")
    renamed._hold_id = HOLD  # the right name over a signature for another hold
    raw = renamed.head(200, []) + renamed.data(b"words")
    good = orjson.loads(encoder(hold="hold-2").end(7)[PREFIX.size :])
    assert reason_of(raw + frame(END, [HOLD, *good[1:]])) == "receipt"


def test_tokens_cannot_be_added_to_a_receipt() -> None:
    raw = answer([b"words"], tokens=7)
    assert raw.count(b'"hold-1",7,') == 1
    assert reason_of(raw.replace(b'"hold-1",7,', b'"hold-1",8,')) == "receipt"


@pytest.mark.parametrize(
    ("claimed", "counted", "tolerance", "due"),
    [
        (100, 100, 2, (100, False)),
        (102, 100, 2, (102, False)),
        (103, 100, 2, (100, True)),
        (1000, 100, 2, (100, True)),
        (90, 100, 2, (90, False)),
        (5, 0, 0, (0, True)),
    ],
)
def test_tokens_are_paid_as_counted_when_the_claim_is_too_high(
    claimed: int, counted: int, tolerance: int, due: tuple[int, bool]
) -> None:
    assert payable(claimed, counted, tolerance) == due


# what is no answer at all


def test_frames_out_of_order_are_refused() -> None:
    writer = encoder()
    head, piece, end = writer.head(200, []), writer.data(b"words"), writer.end(1)
    for raw in (
        piece,
        end,
        head + head,
        head + piece + head,
        head + piece + end + piece,
        head + piece + end + b"\0",
        head + piece + end + end,
    ):
        assert reason_of(raw) == "order"
    assert reason_of(writer.error("gone", 0) + writer.error("gone", 0)) == "order"


@pytest.mark.parametrize("kind", [0, 5, 71, 255])
def test_an_unknown_kind_is_refused(kind: int) -> None:
    assert reason_of(frame(kind, b"")) == "type"
    assert reason_of(encoder().head(200, []) + frame(kind, b"x")) == "type"


def test_sizes_are_bounded() -> None:
    for kind in (HEAD, END, ERROR):
        assert reason_of(PREFIX.pack(kind, LONGEST + 1)) == "oversize"
    writer = encoder()
    head = writer.head(200, [])
    assert reason_of(head + PREFIX.pack(DATA, (1 << 32) - 1)) == "oversize"
    assert reason_of(head + writer.data(bytes(60)) + writer.data(bytes(41)), most_bytes=100) == "oversize"
    reader = decoder(100)
    reader.feed(head + writer.data(bytes(60)) + writer.data(bytes(40)))


GOOD = orjson.loads(encoder().end(7)[PREFIX.size :])


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        *(
            (HEAD, c)
            for c in (b"", b"{", [], [200], [200, [], 1], ["200", []], [99, []], [600, []], [200.0, []], [True, []], [200, {}])
        ),
        *(
            (HEAD, [200, [pair]])
            for pair in (["a"], ["a", 1], ["a", "b", "c"], "ab", ["", "x"], ["A", "x"], ["a b", "x"], ["a:", "x"])
        ),
        *(
            (HEAD, [200, [pair]])
            for pair in (["a", "x\r\nset-cookie: y"], ["a\n", "x"], ["a", "x\0"], ["a", "\u20ac"], ["a", "x\x7f"])
        ),
        *(
            (ERROR, c)
            for c in (b"[", [], ["gone"], ["gone", -1], ["gone", 1.5], ["gone", True], [1, 1], ["g" * 65, 1], ["gone", 1 << 60])
        ),
        *(
            (END, c)
            for c in (
                [],
                GOOD[:3],
                [*GOOD, 1],
                [1, *GOOD[1:]],
                [HOLD, -1, *GOOD[2:]],
                [HOLD, True, *GOOD[2:]],
                [HOLD, "7", *GOOD[2:]],
            )
        ),
        *(
            (END, c)
            for c in (
                [HOLD, 7, "zz" * 32, GOOD[3]],
                [HOLD, 7, GOOD[2].upper(), GOOD[3]],
                [HOLD, 7, GOOD[2], GOOD[3][:-2]],
                {"a": 1},
            )
        ),
        (END, [HOLD, 7, f" {GOOD[2][1:]}", GOOD[3]]),
    ],
)
def test_content_of_another_form_is_refused(kind: int, content: object) -> None:
    before = b"" if kind == HEAD else encoder().head(200, [])
    assert reason_of(before + frame(kind, content)) == "form"


@given(st.binary(max_size=200))
def test_no_bytes_break_a_decoder(raw: bytes) -> None:
    for begin in (b"", encoder().head(200, [])):
        reader = decoder()
        try:
            reader.feed(begin + raw)
            reader.finish()
        except FrameError as error:
            assert error.reason in REASONS
        else:
            pytest.fail("random bytes have passed for an answer with a receipt")
