"""The feed over real sockets: every browser gets the news, a slow one loses old news, and none holds the node up."""

import asyncio
import base64
import gc
import hashlib
import re
import time
import tracemalloc
from contextlib import asynccontextmanager

import orjson
import pytest
import uvloop

from live_bridge.http.client import Client
from live_bridge.http.message import Limits
from live_bridge.http.server import Server
from live_bridge.view import EVENTS_PATH, PAGE_PATH, Feed, feed
from tests.live_bridge.market_demo import Demo, FakeClock, lived

SNAPSHOT = lived(6).snapshot()


@asynccontextmanager
async def served(**limits):
    """A feed behind our own server; gives (feed, port, counts)."""
    counts = []
    shown = Feed()
    server = Server(shown.handle, Limits(**limits), counts.append)
    port = await server.listen("127.0.0.1", 0)
    try:
        yield shown, port, counts
    finally:
        server.close()
        await settle()


async def settle():
    """Let what is being closed be closed."""
    for _ in range(5):
        await asyncio.sleep(0)


class Browser:
    """Reads server-sent events from a raw socket."""

    def __init__(self, reader, writer):
        self.reader, self.writer, self.rest = reader, writer, b""

    @classmethod
    async def watch(cls, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /live/events HTTP/1.1\r\nhost: x\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        browser = cls(reader, writer)
        browser.head = head.lower()
        browser.words = await browser.event()
        return browser

    async def chunk(self):
        size = int((await self.reader.readline()).strip() or b"0", 16)
        body = await self.reader.readexactly(size + 2)
        return body[:-2]

    async def event(self):
        """The next event as a dictionary of its fields; an ended stream is None."""
        async with asyncio.timeout(10):
            while b"\n\n" not in self.rest:
                chunk = await self.chunk()
                if not chunk:
                    return None
                self.rest += chunk
        block, self.rest = self.rest.split(b"\n\n", 1)
        return dict(line.split(b": ", 1) for line in block.split(b"\n"))

    def leave(self):
        self.writer.transport.abort()


async def until(condition):
    """Let the loop run until something holds."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


def snapshot_of(k):
    return {**SNAPSHOT, "now_s": float(k)}


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_every_browser_gets_every_snapshot_it_has_time_for(run):
    async def scene():
        async with served() as (shown, port, _):
            browsers = [await Browser.watch(port) for _ in range(5)]
            for k in range(20):
                shown.publish(snapshot_of(k))
                for browser in browsers:
                    event = await browser.event()
                    assert orjson.loads(event[b"data"]) == snapshot_of(k)
                    assert event[b"id"] == b"%d" % (k + 1)
            for browser in browsers:
                browser.leave()

    run(scene())


def test_a_stream_begins_with_the_words_and_the_latest_snapshot():
    async def scene():
        async with served() as (shown, port, _):
            for k in range(3):
                shown.publish(snapshot_of(k))
            browser = await Browser.watch(port)
            assert browser.words[b"event"] == b"words"
            assert browser.words[b"retry"] == b"2000"
            assert set(orjson.loads(browser.words[b"data"])) == {"accept", "forward", "commit", "entries"}
            assert orjson.loads((await browser.event())[b"data"])["now_s"] == 2.0
            assert b"content-type: text/event-stream" in browser.head
            assert b"cache-control: no-store" in browser.head
            assert b"access-control" not in browser.head  # other sites' pages may not listen
            browser.leave()

    asyncio.run(scene())


def test_a_slow_browser_loses_old_snapshots_and_ends_with_the_newest():
    async def scene():
        async with served() as (shown, port, _):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=4096)
            writer.write(b"GET /live/events HTTP/1.1\r\nhost: x\r\n\r\n")
            await reader.readuntil(b"\r\n\r\n")
            slow, quick = Browser(reader, writer), await Browser.watch(port)
            big = {**SNAPSHOT, "events": [{"at_s": 0.0, "text": "x" * 200}] * 3000}
            for k in range(40):  # 24 MB: more than the kernel holds for one connection
                shown.publish({**big, "now_s": float(k)})
                assert orjson.loads((await quick.event())[b"data"])["now_s"] == k
            seen = []
            await slow.event()
            while not seen or seen[-1] != 39.0:
                seen.append(orjson.loads((await slow.event())[b"data"])["now_s"])
            assert seen == sorted(set(seen))
            assert len(seen) < 30
            for browser in (slow, quick):
                browser.leave()

    asyncio.run(scene())


def test_browsers_that_never_read_cost_bounded_memory_and_no_time():
    async def scene():
        async with served() as (shown, port, _):
            stuck = [await Browser.watch(port) for _ in range(20)]
            for browser in stuck:
                browser.reader._transport.pause_reading()
            big = {**SNAPSHOT, "events": [{"at_s": 0.0, "text": "x" * 200}] * 1000}
            for _ in range(60):
                shown.publish(big)
                await asyncio.sleep(0)
            gc.collect()
            tracemalloc.start()
            before = tracemalloc.get_traced_memory()[0]
            began = time.perf_counter()
            for _ in range(300):
                shown.publish(big)
                await asyncio.sleep(0)
            took_s = (time.perf_counter() - began) / 300
            grown = tracemalloc.get_traced_memory()[0] - before
            tracemalloc.stop()
            assert grown < 20 * feed.HELD * 250_000  # the queues, at most
            assert took_s < 0.01
            for browser in stuck:
                browser.leave()

    asyncio.run(scene())


def test_publishing_to_nobody_costs_less_than_a_millisecond():
    shown = Feed()
    began = time.perf_counter()
    for _ in range(50):
        shown.publish(SNAPSHOT)
    assert (time.perf_counter() - began) / 50 < 1e-3


def test_whoever_leaves_is_forgotten():
    async def scene():
        async with served() as (shown, port, counts):
            browsers = [await Browser.watch(port) for _ in range(8)]
            assert shown.watchers == 8
            for browser in browsers[:5]:
                browser.leave()
            await until(lambda: shown.watchers == 3)
            shown.publish(SNAPSHOT)
            for browser in browsers[5:]:
                assert (await browser.event())[b"id"] == b"1"
                browser.leave()
            await until(lambda: shown.watchers == 0)
            assert "handler_failed" not in counts

    asyncio.run(scene())


def test_more_browsers_than_the_bound_are_told_to_come_back():
    async def scene():
        async with served() as (shown, port, _):
            browsers = [await Browser.watch(port) for _ in range(feed.MOST_WATCHERS)]
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /live/events HTTP/1.1\r\nhost: x\r\n\r\n")
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            assert head.startswith(b"http/1.1 503")
            assert b"retry-after: 5" in head
            writer.transport.abort()
            browsers[0].leave()
            await until(lambda: shown.watchers == feed.MOST_WATCHERS - 1)
            browsers.append(await Browser.watch(port))
            for browser in browsers[1:]:
                browser.leave()

    asyncio.run(scene())


def test_a_silent_feed_is_kept_open_by_comments(monkeypatch):
    monkeypatch.setattr(feed, "SILENCE_S", 0.02)

    async def scene():
        async with served() as (_, port, _counts):
            browser = await Browser.watch(port)
            assert [await browser.chunk() for _ in range(3)] == [b": here\n\n"] * 3
            browser.leave()

    asyncio.run(scene())


def test_closing_gives_what_is_held_says_farewell_and_ends_the_stream():
    async def scene():
        async with served() as (shown, port, _):
            browser = await Browser.watch(port)
            shown.publish(snapshot_of(1))
            shown.publish(snapshot_of(2))
            shown.close()
            assert [(await browser.event())[b"id"] for _ in range(2)] == [b"1", b"2"]
            assert (await browser.event())[b"event"] == b"bye"
            assert await browser.event() is None
            await until(lambda: shown.watchers == 0)
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /live/events HTTP/1.1\r\nhost: x\r\n\r\n")
            assert (await reader.readline()).startswith(b"HTTP/1.1 503")
            writer.transport.abort()
            browser.leave()

    asyncio.run(scene())


def test_a_draining_server_is_not_held_up_by_browsers_once_the_feed_is_closed():
    async def scene():
        shown = Feed()
        server = Server(shown.handle, Limits(), lambda _: None)
        port = await server.listen("127.0.0.1", 0)
        browsers = [await Browser.watch(port) for _ in range(3)]
        shown.close()
        async with asyncio.timeout(3):
            await server.drain(30.0)
        for browser in browsers:
            assert (await browser.event())[b"event"] == b"bye"
            browser.leave()
        await settle()

    asyncio.run(scene())


async def asked(method, target, headers=None):
    """Ask once: (status, headers, body)."""
    async with served() as (_, port, _counts):
        client = Client()
        reply = await client.request(method, f"http://127.0.0.1:{port}{target}", headers)
        found = reply.status, dict(reply.headers), await reply.body(1 << 20)
        await client.close()
        return found


def test_the_page_is_one_file_that_asks_no_other_host_for_anything():
    status, headers, body = asyncio.run(asked("GET", PAGE_PATH))
    assert status == 200
    assert headers[b"content-type"] == b"text/html; charset=utf-8"
    assert body.startswith(b"<!doctype html>")
    text = body.decode()
    hosts = set(re.findall(r"(?:https?:)?//[a-z0-9.-]+\.[a-z]{2,}", text)) - {"http://www.w3.org"}
    assert hosts == set()
    assert not re.findall(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=[\"'](?!data:)", text)
    assert not re.findall(r"\bimport\s*\(|@import|importScripts", text)


def test_text_of_others_can_never_become_markup():
    body = asyncio.run(asked("GET", PAGE_PATH))[2].decode()
    for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function", "srcdoc", "DOMParser"):
        assert way not in body


def test_the_content_policy_allows_this_script_and_this_style_and_nothing_else():
    _, headers, body = asyncio.run(asked("GET", PAGE_PATH))
    policy = dict(part.strip().split(" ", 1) for part in headers[b"content-security-policy"].decode().split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["connect-src"] == "'self'"
    assert "unsafe" not in str(policy)
    for tag, rule in (("script", "script-src"), ("style", "style-src")):
        (inside,) = re.findall(rf"<{tag}>(.*?)</{tag}>", body.decode(), re.DOTALL)
        assert policy[rule] == f"'sha256-{base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()}'"
    assert "style=" not in body.decode().replace("found.style", "")


def test_an_unchanged_page_is_not_sent_again():
    _, headers, _ = asyncio.run(asked("GET", PAGE_PATH))
    status, again, body = asyncio.run(asked("GET", PAGE_PATH, [(b"if-none-match", headers[b"etag"])]))
    assert (status, body) == (304, b"")
    assert again[b"etag"] == headers[b"etag"]


@pytest.mark.parametrize(
    ("method", "target", "status", "code"),
    [
        ("POST", PAGE_PATH, 405, "method_not_allowed"),
        ("DELETE", EVENTS_PATH, 405, "method_not_allowed"),
        ("GET", "/x", 404, "not_found"),
    ],
)
def test_other_requests_get_an_error_that_says_so(method, target, status, code):
    found, headers, body = asyncio.run(asked(method, target))
    assert found == status
    assert orjson.loads(body)["error"]["code"] == code
    if status == 405:
        assert headers[b"allow"] == b"GET, HEAD"


@pytest.mark.parametrize("target", [PAGE_PATH, EVENTS_PATH])
def test_a_head_request_ends_at_once_without_a_body(target):
    status, _, body = asyncio.run(asked("HEAD", target))
    assert (status, body) == (200, b"")


def test_a_number_that_is_not_finite_is_shown_as_unknown():
    shown = Feed()
    shown.publish({**SNAPSHOT, "now_s": float("inf")})
    assert orjson.loads(shown._latest.split(b"data: ")[1])["now_s"] is None


def test_a_snapshot_is_one_line_whatever_the_names_hold():
    demo = Demo(3, clock=FakeClock())
    demo.name = lambda k: "a\n\ndata: {}\n\n\r\u2028" * k
    shown = Feed()
    shown.publish(demo.snapshot())
    assert shown._latest.count(b"\n") == 3
    assert b"\r" not in shown._latest
