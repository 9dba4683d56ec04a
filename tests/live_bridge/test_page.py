"""The live page in headless Chromium, over real sockets: what it shows, what it does without news, and who can read it."""

import asyncio
import io
import json
from contextlib import asynccontextmanager

import pytest
from PIL import Image

from live_bridge.http.message import Limits
from live_bridge.http.server import Server
from live_bridge.view import Feed, why
from market.observation import OBSERVATION_SIZE
from tests.live_bridge.chromium import Chromium, found, tab
from tests.live_bridge.market_demo import Demo, FakeClock, lived
from tests.live_bridge.picture import WIDTH, take

pytestmark = pytest.mark.skipif(found() is None, reason="needs a Chromium: apt-get install chromium")
READY = "document.querySelector('.node.me .name') && words !== null"


@pytest.fixture(scope="module")
def browser():
    one = Chromium()
    yield one
    one.close()


@asynccontextmanager
async def shown(browser, snapshot=None, width=1280, height=800, *, dark=False, still=True):
    """The page in a tab, with one snapshot: (tab, feed, address)."""
    feed = Feed()
    server = Server(feed.handle, Limits(), lambda _: None)
    address = f"http://127.0.0.1:{await server.listen('127.0.0.1', 0)}/"
    if snapshot is not None:
        feed.publish(snapshot)
    try:
        async with tab(browser, width, height, dark=dark, still=still) as page:
            await page.open(address)
            if snapshot is not None:
                await page.until(READY)
            yield page, feed, address
    finally:
        server.close()
        await asyncio.sleep(0.01)


def look(browser, scene, *args, **more):
    """Run a scene with the page; afterwards the console must have nothing to say."""

    async def run():
        async with shown(browser, *args, **more) as (page, feed, address):
            await scene(page, feed, address)
            assert page.errors == []

    asyncio.run(run())


def text_of(selector):
    return f"[...document.querySelectorAll({selector!r})].map((one) => one.textContent)"


def small(**more):
    """A snapshot of two nodes, by hand."""
    node = {"status": "alive", "wait_s": 2.5, "usage": 0.25, "running": 3, "waiting": None, "accepts": 1.0, "age_s": 1.0}
    return {
        "now_s": 100.0,
        "me": {
            "id": "a" * 40,
            "name": "ann",
            "policy": "ppo_x",
            "brain": "policy",
            "speed": 1.0,
            "draining": False,
            "uptime_s": 100.0,
        },
        "nodes": [
            {**node, "id": "a" * 40, "name": "ann", "address": "http://h:1", "me": True, "credit": 80.0, "stake": 20.0}
            | {"duels_won": 1, "duels_lost": 2},
            {**node, "id": "b" * 40, "name": "ben", "address": "http://h:2", "me": False, "credit": 50.0, "stake": 40.0}
            | {"duels_won": 0, "duels_lost": 0},
        ],
        "flows": [{"from": "a" * 40, "to": "b" * 40, "kind": "user", "count": 12}],
        "totals": {
            "arrived": 40,
            "attained": 30,
            "missed": 8,
            "failed": 2,
            "delegated": 10,
            "executed_for_others": 7,
            "in_flight": 5,
            "queued": 2,
        },
        "attainment": 0.75,
        "latency_s": {"p50": 3.21, "p95": 48.0, "mean": 9.5},
        "decisions": [{"at_s": 96.0, "accept": 2, "forward": 1, "commit": 3, "brain": "policy", "failure": None, "why": {}}],
        "duels": [],
        "events": [],
        "series": {
            "t": [98.0, 99.0, 100.0],
            "wait": [0.0, 1.0, 2.5],
            "usage": [0.1, 0.2, 0.25],
            "wealth": [100.0] * 3,
            "attainment": [None] * 3,
        },
        **more,
    }


def test_tiles_say_what_the_snapshot_says(browser):
    async def scene(page, feed, address):
        tiles = await page.js(
            "[...document.querySelectorAll('.tile')].map((one) => [...one.children].map((x) => x.textContent).filter(Boolean))"
        )
        assert tiles == [
            ["SLO attainment", "75%", "30 of 40 in time, 2 failed"],
            ["Latency, median and p95", "3.2 s / 48 s", "mean 9.5 s, last 5 min"],
            ["In flight", "5", "of 40 in all"],
            ["Queued", "2", "in own queue"],
            ["Delegated", "25%", "7 for others"],
            ["Credit", "80", "free to spend"],
            ["Stake", "20", "20% of its wealth"],
        ]
        assert await page.js("document.title") == "ann · 75% · wwwserve"
        assert await page.js(text_of(".pill")) == ["policy ppo_x", "up 1 min"]
        assert await page.js("document.querySelector('#news').dataset.state") == "live"

    look(browser, scene, small())


DRAWN = """[...document.querySelectorAll(".node")].map((node) => {
  const text = (kind) => node.querySelector(kind).textContent;
  const number = (kind, name) => +node.querySelector(kind).getAttribute(name);
  const [r, level] = [number(".disc", "r"), number(".level", "height")];
  return {name: text(".name"), note: text(".note"), percent: text(".percent"), r, level};
})"""


def test_the_picture_shows_each_node_by_stake_and_load_and_each_flow_by_count(browser):
    async def scene(page, feed, address):
        nodes = await page.js(DRAWN)
        ann, ben = sorted(nodes, key=lambda node: node["name"])
        assert (ann["name"], ben["name"], ben["percent"], ben["note"]) == ("ann", "ben", "25%", "wait 2.5 s")
        assert ben["r"] == pytest.approx(2**0.5 * ann["r"], rel=0.02)  # twice the stake: twice the area
        assert ben["level"] == pytest.approx(0.25 * 2 * ben["r"], rel=0.02)
        assert await page.js(text_of("#counts text")) == ["12"]
        assert await page.js(text_of("#ways title")) == ["ann to ben: 12 requests in the last minute"]
        wide = await page.js("+document.querySelector('.way').getAttribute('stroke-width')")
        again = small(
            flows=[
                {"from": "a" * 40, "to": "b" * 40, "kind": "user", "count": 3},
                {"from": "b" * 40, "to": "a" * 40, "kind": "copy", "count": 30},
            ]
        )
        feed.publish(again)
        await page.until("document.querySelectorAll('#ways .flow').length === 2")
        assert await page.js("+document.querySelector('.flow.user .way').getAttribute('stroke-width')") < wide
        assert await page.js("getComputedStyle(document.querySelector('.flow.copy .way')).strokeDasharray") != "none"
        feed.publish(small(flows=[]))
        await page.until("document.querySelectorAll('#ways .flow').length === 0")

    look(browser, scene, small())


def test_long_latencies_and_large_sums_fit_their_tiles(browser):
    ann, ben = small()["nodes"]
    long = small(
        latency_s={"p50": 182.4, "p95": 992.8, "mean": 4000.0},
        nodes=[{**ann, "credit": 1_234_567.0, "stake": 654_321.0}, ben],
        totals={**small()["totals"], "arrived": 12_345_678, "in_flight": 12_345},
    )

    async def scene(page, feed, address):
        assert (await page.js(text_of(".tile .value")))[1] == "182 s / 993 s"
        for width, height in ((1280, 800), (390, 844)):
            await page.resize(width, height)
            wide = "[...document.querySelectorAll('.tile .value')].filter((one) => one.scrollWidth > one.clientWidth)"
            assert await page.js(f"{wide}.map((one) => one.textContent)") == []

    look(browser, scene, long)


def test_the_share_of_stake_counts_money_that_is_unbonding_or_held(browser):
    async def scene(page, feed, address):
        assert (await page.js(text_of(".tile .sub")))[-1] == "10% of its wealth"  # 20 of 200, though credit and stake are 100

    look(browser, scene, small(series={**small()["series"], "wealth": [150.0, 180.0, 200.0]}))


def test_marks_travel_as_often_as_the_counts_say(browser):
    async def scene(page, feed, address):
        await page.js("window.launched = 0; { const was = launch; launch = (flow) => { launched++; was(flow); }; }")
        began = await page.js("performance.now()")
        await page.until("launched >= 20")
        took_s = (await page.js("performance.now()") - began) / 1000
        assert 20 / took_s == pytest.approx(10.0, rel=0.35)  # 600 in a minute
        feed.publish(small(flows=[{"from": "a" * 40, "to": "b" * 40, "kind": "user", "count": 60_000}]))
        await page.until("document.querySelector('#legend').textContent.includes('one mark = 50,')")
        feed.publish(small(flows=[]))
        await page.until("document.querySelectorAll('#marks path').length === 0")

    look(browser, scene, small(flows=[{"from": "a" * 40, "to": "b" * 40, "kind": "user", "count": 600}]), still=False)


def test_no_mark_travels_where_there_is_no_way_any_more(browser):
    async def scene(page, feed, address):
        feed.publish(small(flows=[{"from": "a" * 40, "to": "b" * 40, "kind": "user", "count": 60}]))
        await page.until("document.querySelectorAll('#marks .mark').length > 0")
        feed.publish(small(flows=[]))
        await page.until("document.querySelectorAll('#ways .flow').length === 0")
        frames = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))"
        assert await page.js(frames)
        assert await page.js("document.querySelectorAll('#marks .mark').length") == 0

    look(browser, scene, small(), still=False)


def test_whoever_asked_for_stillness_sees_no_moving_marks(browser):
    async def scene(page, feed, address):
        await page.js("new Promise((done) => setTimeout(done, 400))")
        assert await page.js("document.querySelectorAll('#marks path').length") == 0
        assert await page.js(text_of("#counts text")) == ["600"]
        assert "counts of the last minute" in await page.js("document.querySelector('#legend').textContent")

    look(browser, scene, small(flows=[{"from": "a" * 40, "to": "b" * 40, "kind": "user", "count": 600}]), still=True)


SEEN = """[...document.querySelectorAll(".seen > div")].map((row) => {
  const [name, value] = ["dt", "dd"].map((one) => row.querySelector(one));
  return [name.textContent, value.textContent, value.className];
})"""


def test_a_decision_is_said_in_words_with_what_was_seen(browser):
    seen = why([0.5] * OBSERVATION_SIZE)
    decisions = [
        {"at_s": 91.0, "accept": 0, "forward": 0, "commit": 0, "brain": "policy", "failure": None, "why": {**seen, "queue": 2.0}},
        {"at_s": 96.0, "accept": 2, "forward": 1, "commit": 3, "brain": "policy", "failure": None, "why": seen},
    ]

    async def scene(page, feed, address):
        assert await page.js("document.querySelector('#decided').textContent") == "4 s ago, by ppo_x"
        assert await page.js(text_of(".says .long")) == [
            "Takes peers' work that should be done here within 80% of its time left.",
            "Offers own work to peers when it would need more than 120% of its time left here.",
            "Commits 25% of its wealth as stake.",
        ]
        rows = await page.js(SEEN)
        assert ["kv usage", "50%", "same"] in rows
        assert ["queue", "8", "up"] in rows
        width = "document.querySelectorAll('.seen .bar i')[1].style.width"
        assert await page.js(width) == "50%"
        await page.js("document.querySelector('.link').click()")
        assert "requests waiting here, own queue and engine" in await page.js(text_of(".seen dt"))
        await page.js("document.querySelector('.strip button').click()")
        assert (await page.js(text_of(".says .long")))[0] == "Takes no work of peers."
        assert await page.js("document.querySelector('#decided').textContent") == "9 s ago, by ppo_x"

    look(browser, scene, small(decisions=decisions))


def test_a_failure_of_the_policy_is_an_alarm_in_words(browser):
    failed = {"at_s": 99.0, "accept": None, "forward": None, "commit": None, "brain": "paper", "failure": "not_finite", "why": {}}

    async def scene(page, feed, address):
        assert await page.js(text_of(".pill.alarm")) == ["the policy fails: the paper\u2019s rules steer"]
        assert await page.js(text_of(".failure")) == ["The policy failed (not finite)."]
        assert await page.js("document.querySelector('#decided').textContent") == "1 s ago, by the paper\u2019s rules"
        assert await page.js("document.querySelectorAll('.strip .failed').length") == 1
        feed.publish(small(decisions=[{**failed, "failure": None}], me={**small()["me"], "policy": "paper", "brain": "paper"}))
        await page.until("document.querySelectorAll('.pill.alarm, .failure').length === 0")

    look(browser, scene, small(decisions=[failed], me={**small()["me"], "brain": "paper"}))


def test_duels_show_the_winner_and_each_vote_by_name(browser):
    duels = [
        {"at_s": 40.0, "a": "a" * 40, "b": "b" * 40, "winner": "b" * 40, "votes": ["B", "B", "abstain"], "judges": ["c" * 40] * 3},
        {"at_s": 90.0, "a": "a" * 40, "b": "d" * 40, "winner": None, "votes": ["A", "absent", "B"], "judges": ["b" * 40] * 3},
    ]

    async def scene(page, feed, address):
        assert await page.js(
            "[...document.querySelectorAll('#duels li')].map((li) => [...li.children].map((one) => one.textContent).join(' | '))"
        ) == [
            "10 s | ann against dddddddd: no winner | A\u2013B",
            "60 s | ann against ben: ben won | BB=",
        ]
        assert await page.js(text_of("#duels b")) == ["ben"]
        assert await page.js("document.querySelector('#duels .votes').getAttribute('aria-label')") == "votes: A, absent, B"
        assert await page.js("document.querySelector('#duels .vote').title") == "ben: ann"

    look(browser, scene, small(duels=duels))


def test_the_table_says_what_the_picture_says(browser):
    async def scene(page, feed, address):
        assert await page.js(
            "[...document.querySelectorAll('#nodes tbody tr')].map((row) => [...row.cells].map((cell) => cell.textContent))"
        ) == [
            ["ann this node", "alive", "25%", "3", "\u2013", "2.5 s", "yes", "80", "20", "1\u20132", "own"],
            ["ben", "gone", "25%", "3", "\u2013", "\u2013", "no", "50", "40", "0\u20130", "12 s"],
        ]
        assert await page.js("document.querySelector('.node.gone .note').textContent") == "gone"
        assert (
            await page.js("document.querySelector('#market-sum').textContent")
            == "1 node alive, 1 silent or gone · 12 hand-overs in the last minute"
        )

    ann, ben = small()["nodes"]
    look(browser, scene, small(nodes=[{**ben, "status": "gone", "accepts": 0.0, "wait_s": None, "age_s": 12.0}, ann]))


def test_curves_are_drawn_and_can_be_read_at_any_point(browser):
    async def scene(page, feed, address):
        assert await page.js(text_of(".chart b")) == ["2.5 s", "25%", "100", "\u2013"]
        assert await page.js("document.querySelector('[data-curve=wait] svg').getAttribute('aria-label')") == (
            "Wait here: now 2.5 s; in the last five minutes from 0 s to 2.5 s"
        )
        assert (await page.js("document.querySelector('[data-curve=wait] .line').getAttribute('d')")).count("L") == 2
        box = await page.js(
            "Object.values(document.querySelector('[data-curve=wait] svg').getBoundingClientRect().toJSON()).slice(0, 4)"
        )
        await page.call("Input.dispatchMouseEvent", type="mouseMoved", x=box[0] + box[2] * 0.1, y=box[1] + box[3] / 2)
        await page.until("document.querySelector('.chart b').textContent === '0 s'")
        await page.call("Input.dispatchMouseEvent", type="mouseMoved", x=5, y=5)
        await page.until("document.querySelector('.chart b').textContent === '2.5 s'")

    look(browser, scene, small())


def test_an_empty_market_says_so_and_how_to_begin(browser):
    empty = Demo(1, clock=FakeClock(3.0)).snapshot()

    async def scene(page, feed, address):
        veil = await page.js("document.querySelector('#veil').innerText")
        assert "This node is alone, and no request has come yet." in veil
        assert "live_bridge serve --join http://10.0.0.2:9000" in veil
        assert f"curl {address}v1/completions" in veil
        body = await page.js("document.body.innerText")
        for said in (
            "no request was due yet",
            "no answer in the last 5 min",
            "Nobody has decided yet",
            "No duel has ended yet",
            "Nothing has happened yet",
        ):
            assert said in body
        assert "NaN" not in body and "undefined" not in body and "null" not in body
        feed.publish({**lived(4).snapshot(), "now_s": 400.0})
        await page.until("document.querySelector('#veil').hidden && document.querySelectorAll('.node').length === 4")

    look(browser, scene, empty)


def test_before_the_first_snapshot_the_page_says_that_it_waits(browser):
    async def scene(page, feed, address):
        await page.until("document.querySelector('#news').textContent.includes('waiting for the first news')")
        assert await page.js("document.querySelectorAll('.node, .tile').length") == 0
        feed.publish(small())
        await page.until("document.querySelector('#news').dataset.state === 'live'")

    look(browser, scene)


def test_the_page_says_when_the_feed_is_stale_and_recovers(browser):
    async def scene(page, feed, address):
        await page.js("heard_ms -= 7000; look()")
        assert await page.js("document.querySelector('#news').dataset.state") == "late"
        assert "no news for 7 s" in await page.js("document.querySelector('#news').textContent")
        assert await page.js("document.querySelector('#news').getAttribute('role')") == "status"
        assert await page.js("document.body.classList.contains('old')")
        feed.publish(small())
        await page.until("document.querySelector('#news').dataset.state === 'live' && !document.body.classList.contains('old')")

    look(browser, scene, small())


def test_the_page_reconnects_by_itself_when_the_node_is_back(browser):
    async def run():
        async with shown(browser, small()) as (page, feed, address):
            port = int(address.rsplit(":", 1)[1].strip("/"))
            feed.close()
            await page.until("document.querySelector('#news').dataset.state === 'over'")
            assert "this node has stopped" in await page.js("document.querySelector('#news').textContent")
        again = Feed()
        async with tab(browser) as page:
            first = Feed()
            server = Server(first.handle, Limits(), lambda _: None)
            await server.listen("127.0.0.1", port)
            first.publish(small())
            await page.open(f"http://127.0.0.1:{port}/")
            await page.until(READY)
            server.close()
            await page.until("document.querySelector('#news').dataset.state === 'lost' && document.body.classList.contains('old')")
            server = Server(again.handle, Limits(), lambda _: None)
            await server.listen("127.0.0.1", port)
            again.publish(small(attainment=0.5))
            await page.until("document.querySelector('#news').dataset.state === 'live' && document.title.includes('50%')", 15.0)
            assert not await page.js("document.body.classList.contains('old')")
            server.close()
            await asyncio.sleep(0.01)

    asyncio.run(run())


EVIL = "<img src=x onerror=alert(1)><script>hacked=1</script>"


def test_names_of_peers_are_text_whatever_they_hold(browser):
    ann, ben = small()["nodes"]
    evil = small(
        nodes=[ann, {**ben, "name": EVIL, "address": "javascript:alert(1)", "id": '"]<b>' + "b" * 35}],
        events=[{"at_s": 99.0, "text": EVIL}],
        decisions=[{**small()["decisions"][0], "why": {EVIL: 1.0, "__proto__": 0.5}}],
        me={**small()["me"], "policy": EVIL},
    )

    async def scene(page, feed, address):
        await page.until("document.querySelectorAll('#events li').length === 1")
        assert await page.js("typeof hacked") == "undefined"
        assert await page.js("document.querySelectorAll('img, main script, b > b').length") == 0
        assert EVIL in await page.js("document.querySelector('#events').textContent")
        assert EVIL in await page.js("document.querySelector('#nodes').textContent")
        await page.js("document.querySelectorAll('#nodes tbody button')[1].click()")
        assert await page.js("document.querySelectorAll('.node.chosen').length") == 1

    look(browser, scene, evil)


def test_the_content_policy_holds_in_a_browser(browser):
    async def run():
        async with shown(browser, small()) as (page, _, _address):
            await page.js(
                "{ const s = document.createElement('script'); s.textContent = 'window.ran = 1'; document.body.append(s); }"
            )
            assert await page.js("window.ran === undefined")
            assert await page.js("fetch('https://example.org/').then(() => 'sent', () => 'refused')") == "refused"
            assert page.errors and all("Content Security Policy" in error for error in page.errors)

    asyncio.run(run())


def test_everything_can_be_reached_and_used_by_keyboard(browser):
    async def scene(page, feed, address):
        seen = []
        for _ in range(60):
            await page.press("Tab")
            seen.append(await page.js("((one) => one.getAttribute('class') || one.id || one.tagName)(document.activeElement)"))
            if seen[-1] == "events":
                break
        assert seen[0] == "skip"
        assert sum("node" in str(one) for one in seen) >= 6
        assert seen[-1] == "events"
        await page.js("document.querySelector('.node:not(.me)').focus()")
        await page.press("Enter")
        assert await page.js("document.activeElement.getAttribute('aria-pressed')") == "true"
        assert await page.js("document.querySelectorAll('tr.chosen').length") == 1
        feed.publish({**snapshot, "now_s": snapshot["now_s"] + 1})
        await page.until("now.now_s > " + str(snapshot["now_s"]))
        assert await page.js("document.activeElement.classList.contains('chosen')")  # a snapshot takes the focus from nobody
        await page.press("Escape")
        assert await page.js("document.querySelectorAll('.chosen').length") == 0
        await page.js("document.querySelector('.strip [aria-pressed=true]').focus()")
        for key, place in (("ArrowLeft", -2), ("Home", 0), ("ArrowRight", 1), ("End", -1)):
            await page.press(key)
            assert await page.js("[...document.querySelectorAll('.strip button')].indexOf(document.activeElement)") == place % 20
            assert await page.js("document.activeElement.getAttribute('aria-pressed')") == "true"

    snapshot = lived(6).snapshot()
    look(browser, scene, snapshot)


def test_a_screen_reader_finds_names_for_all_that_can_be_used(browser):
    async def scene(page, feed, address):
        tree = (await page.call("Accessibility.getFullAXTree"))["nodes"]
        told = [
            (one["role"]["value"], one.get("name", {}).get("value", "")) for one in tree if not one["ignored"] and "role" in one
        ]
        assert not [
            role for role, name in told if role in {"button", "img", "image", "region", "group", "toolbar", "link"} and not name
        ]
        headings = [name for role, name in told if role == "heading"]
        for heading in ("berlin", "The market", "What the policy decided", "Last duels", "Events", "Nodes"):
            assert heading in headings
        assert any(
            role == "button" and name.startswith("oslo, alive, ") and "of the KV cache in use" in name for role, name in told
        )
        assert any(name.startswith("KV cache in use: now ") for _, name in told)
        assert await page.js("document.documentElement.lang") == "en"

    look(browser, scene, lived(6).snapshot())


CONTRAST = """(() => {
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const part = (x) => (x / 255 <= 0.03928 ? x / 255 / 12.92 : ((x / 255 + 0.055) / 1.055) ** 2.4);
  const light = (colour) => { const [r, g, b] = numbers(colour).map(part); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const ground = (one) => {
    for (; one; one = one.parentElement) {
      const found = getComputedStyle(one).backgroundColor;
      if (numbers(found)[3] !== 0) return found;
    }
  };
  const low = [];
  for (const one of document.querySelectorAll("body :not(script, style, noscript, noscript *)")) {
    const text = [...one.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
    if (!text || !one.getClientRects().length) continue;
    const style = getComputedStyle(one), paper = light(ground(one));
    const ink = light(one instanceof SVGElement ? style.fill : style.color);
    const ratio = (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
    if (!(ratio >= 4.5)) low.push([one.textContent.trim().slice(0, 30), one.getAttribute("class"), ratio]);
  }
  return low;
})()"""


def test_all_text_has_contrast_enough_to_be_read_in_light_and_dark(browser):
    async def scene(page, feed, address):
        for dark in (False, True):
            await page.look_at(dark, still=True)
            assert await page.js(CONTRAST) == []

    look(browser, scene, lived(6).snapshot(statuses={2: "suspect", 4: "gone"}))


STICKS_OUT = """(() => {
  const frame = document.querySelector("#market").closest(".panel").getBoundingClientRect();
  return [...document.querySelectorAll("#market text")].filter((one) => {
    const box = one.getBoundingClientRect();
    return box.width && (box.left < frame.left || box.right > frame.right || box.top < frame.top || box.bottom > frame.bottom);
  }).map((one) => one.textContent);
})()"""


def test_nothing_sticks_out_at_any_width(browser):
    async def scene(page, feed, address):
        for width, height in ((1920, 1080), (1280, 800), (900, 1100), (390, 844), (320, 640)):
            await page.resize(width, height)
            await page.until("Math.abs(view.width - document.querySelector('#market').clientWidth) < 1")
            assert await page.js("document.documentElement.scrollWidth") <= width
            assert await page.js(STICKS_OUT) == []
            bottoms = (
                "['#market', '#charts', '.says', '.seen'].map((one) => document.querySelector(one).getBoundingClientRect().bottom)"
            )
            if (width, height) == (1280, 800):  # the market, its curves and the decision are there without scrolling
                assert max(await page.js(bottoms)) <= 800

    look(browser, scene, lived(6).snapshot())


COVERED = """(() => {
  const all = [...places.values()];
  let count = 0;
  all.forEach((a, k) => all.slice(k + 1).forEach((b) => { if (Math.hypot(a.x - b.x, a.y - b.y) < a.r + b.r) count++; }));
  return count;
})()"""
INSIDE = "[...places.values()].every(({x, y, r}) => x - r >= 0 && y - r >= 0 && x + r <= view.width && y + r <= view.height)"


def test_no_node_covers_another_and_a_large_market_is_drawn_in_time(browser):
    async def scene(page, feed, address):
        for nodes in (1, 2, 3, 5, 13, 24, 25, 60, 300, 1000):
            feed.publish(lived(nodes, 20).snapshot())
            await page.until(f"places.size === {nodes} && document.querySelectorAll('.node').length === {nodes}")
            for width, height in ((1280, 800), (390, 844)):
                await page.resize(width, height)
                await page.until("Math.abs(view.width - document.querySelector('#market').clientWidth) < 1")
                assert (nodes, width, await page.js(COVERED), await page.js(INSIDE)) == (nodes, width, 0, True)
        assert await page.js("(() => { const began = performance.now(); draw(); return performance.now() - began; })()") < 500
        assert (
            await page.js("document.querySelector('#more').textContent")
            == "and 900 more; one that is chosen in the picture comes to the top"
        )

    look(browser, scene, lived(4, 20).snapshot())


def test_the_picture_for_the_docs_waits_for_what_it_is_to_show(browser):
    async def scene(page, feed, address):
        taking = asyncio.create_task(take(address, 0.0))
        await page.until("document.querySelectorAll('.node').length === 2")
        feed.publish(small(duels=[], flows=[]))
        feed.publish(lived(6, 300).snapshot())
        picture = Image.open(io.BytesIO(await taking))
        assert picture.size[0] == WIDTH and picture.size[1] > 600

    look(browser, scene, small(duels=[], flows=[]))


def test_a_picture_of_the_page_is_as_bright_as_was_asked_and_not_blank(browser):
    async def scene(page, feed, address):
        for dark, ground, blue in ((False, (244, 243, 239), (0, 114, 178)), (True, (14, 18, 22), (92, 182, 238))):
            await page.look_at(dark, still=True)
            picture = Image.open(io.BytesIO(await page.shot())).convert("RGB")
            assert picture.size == (1280, 800)
            assert picture.getpixel((4, 400)) == ground
            count = {colour: number for number, colour in picture.getcolors(1 << 20)}
            assert count.get(blue, 0) > 1_000
            assert len(count) > 200

    look(browser, scene, lived(6).snapshot())


def test_a_page_left_open_for_an_hour_does_not_grow(browser):
    async def scene(page, feed, address):
        demo = lived(8)
        sizes = []
        for _ in range(4):
            snapshots = []
            for _ in range(20):
                demo.clock.now_s += 1.0
                demo.step()
                if int(demo.clock.now_s) % 5 == 4:
                    demo.decide()
                snapshots.append(demo.snapshot())
            await page.js(f"for (const one of {json.dumps(snapshots)}) {{ now = one; draw(); }}")
            sizes.append(
                await page.js("document.querySelectorAll('*').length + flows.size + nodes.size + pool.length + shown.size")
            )
        assert max(sizes[1:]) <= 1.1 * sizes[0]

    look(browser, scene, lived(8).snapshot())
