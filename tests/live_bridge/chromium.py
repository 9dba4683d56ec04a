"""Headless Chromium over its DevTools protocol, for tests of the live page."""

import asyncio
import base64
import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import aiohttp

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
START_S = 30.0


def found():
    """Where a Chromium is, or None."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Chromium:
    """One browser; close it with `close`."""

    def __init__(self):
        self.home = tempfile.mkdtemp(prefix="chromium-")
        flags = "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --hide-scrollbars --mute-audio"
        quiet = "--disable-background-networking --disable-component-update --disable-sync --disable-extensions"
        command = [
            found(),
            *flags.split(),
            *quiet.split(),
            "--remote-debugging-port=0",
            f"--user-data-dir={self.home}",
            "about:blank",
        ]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        self.url = self._address()

    def _address(self):
        place = Path(self.home) / "DevToolsActivePort"
        until = time.monotonic() + START_S
        while time.monotonic() < until and self.process.poll() is None:
            if place.exists() and len(lines := place.read_text().split()) == 2:
                return f"ws://127.0.0.1:{lines[0]}{lines[1]}"
            time.sleep(0.05)
        self.close()
        raise RuntimeError("chromium did not start")

    def close(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for _ in range(20):  # its helpers may write for a moment longer
            shutil.rmtree(self.home, ignore_errors=True)
            if not Path(self.home).exists():
                return
            time.sleep(0.05)


class Tab:
    """One page of a browser, in a context of its own."""

    def __init__(self, socket):
        self._socket = socket
        self._serial = 0
        self._answers = {}
        self._session = None
        self.errors = []
        """What the console calls an error: exceptions, refusals of the content policy, failed requests."""

    async def call(self, method, **params):
        """Call a method of the protocol and wait for its result."""
        self._serial += 1
        answer = self._answers[self._serial] = asyncio.get_running_loop().create_future()
        message = {"id": self._serial, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        await self._socket.send_str(json.dumps(message))
        return await asyncio.wait_for(answer, START_S)

    async def read(self):
        async for message in self._socket:
            said = json.loads(message.data)
            if "id" in said:
                answer = self._answers.pop(said["id"])
                if "error" in said:
                    answer.set_exception(RuntimeError(said["error"]["message"]))
                else:
                    answer.set_result(said["result"])
            else:
                self._note(said["method"], said["params"])

    def _note(self, method, params):
        if method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.errors.append(f"{details['text']} {details.get('exception', {}).get('description', '')}")
        elif method == "Log.entryAdded" and params["entry"]["level"] in {"error", "warning"}:
            self.errors.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
        elif method == "Runtime.consoleAPICalled" and params["type"] in {"error", "warning", "assert"}:
            self.errors.append(str([one.get("value") for one in params["args"]]))

    async def begin(self, width, height, dark, still):
        context = await self.call("Target.createBrowserContext")
        target = await self.call("Target.createTarget", url="about:blank", browserContextId=context["browserContextId"])
        self._session = (await self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True))["sessionId"]
        for domain in ("Runtime", "Log", "Page", "Accessibility"):
            await self.call(f"{domain}.enable")
        await self.resize(width, height)
        await self.look_at(dark, still)

    async def resize(self, width, height):
        """Give the page another window."""
        await self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500)

    async def look_at(self, dark, still=False):
        """Choose the colour scheme and whether things may move."""
        features = [
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
            {"name": "prefers-reduced-motion", "value": "reduce" if still else "no-preference"},
        ]
        await self.call("Emulation.setEmulatedMedia", features=features)

    async def open(self, url):
        await self.call("Page.navigate", url=url)
        await self.until(f"location.href === {json.dumps(url)} && document.readyState === 'complete'")

    async def js(self, expression):
        """Evaluate an expression; a promise is awaited."""
        found = await self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(found["exceptionDetails"].get("exception", {}).get("description", found["exceptionDetails"]["text"]))
        return found["result"].get("value")

    async def until(self, expression, patience_s=10.0):
        """Wait until an expression is true in the page."""
        loop = f"""new Promise((yes, no) => {{
            const end = performance.now() + {1000 * patience_s};
            const look = () => ({expression}) ? yes(true) : performance.now() > end ? yes(false) : setTimeout(look, 20);
            look();
        }})"""
        if not await self.js(loop):
            raise AssertionError(f"not within {patience_s} s: {expression}")

    async def press(self, key):
        """Press and let go a key that has a name."""
        for kind in ("keyDown", "keyUp"):
            text = {"Enter": "\r", " ": " "}.get(key) if kind == "keyDown" else None
            codes = {"Enter": 13, "Tab": 9, "Escape": 27, " ": 32, "ArrowLeft": 37, "ArrowRight": 39, "Home": 36, "End": 35}
            more = {"text": text} if text else {}
            await self.call("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=codes[key], **more)

    async def shot(self, *, whole=False):
        """Take a picture (PNG)."""
        found = await self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        return base64.b64decode(found["data"])


@contextlib.asynccontextmanager
async def tab(browser, width=1280, height=800, *, dark=False, still=False):
    """A fresh tab."""
    async with aiohttp.ClientSession() as session, session.ws_connect(browser.url, max_msg_size=0) as socket:
        page = Tab(socket)
        reading = asyncio.create_task(page.read())
        try:
            await page.begin(width, height, dark, still)
            yield page
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
