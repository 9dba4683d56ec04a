"""The parts of a node that depend on its settings: engine, ledger, HTTP, keys, certificates."""

import asyncio
import logging
import os
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from live_bridge import log
from live_bridge.backends.watcher import Watcher
from live_bridge.clock import Clock
from live_bridge.config import NodeSettings, profile_named
from live_bridge.http.message import Headers, HttpClient, HttpServer, Limits
from live_bridge.http.server import Server
from live_bridge.identity import Identity, load
from live_bridge.ledger.journal import JournalError
from live_bridge.ledger.ledger import Ledger
from live_bridge.ledger.remote import RemoteLedger
from live_bridge.ledger.service import LedgerRoutes
from live_bridge.ledger.store import StoreError
from live_bridge.slip import Slipped

if TYPE_CHECKING:
    from live_bridge.backends.launch import Launched

KB, MB = 1024, 1 << 20
LOG = logging.getLogger(__name__)
LAUNCH_S = 900.0
"""Seconds on the wall that an engine may take until it is healthy: a large model loads for minutes."""
LEDGER_PATIENCE_S = 30.0
LIFE_FILE = "lives"


class LedgerPart(NamedTuple):
    """A node's way to its ledger."""

    ledger: Ledger
    url: str  # where others reach it; empty when that is here
    routes: LedgerRoutes | None  # when it is embedded in this node


def prepared(settings: NodeSettings, home: Path) -> None:
    """Make the node's folder, and let logs go where they shall.

    errors   Slipped when one of them cannot be written
    """
    try:
        log.configure(settings.log.level, Path(settings.log.file) if settings.log.file else None)
    except OSError as error:
        raise Slipped(f"log.file: {settings.log.file}: cannot be written: {error.strerror}; name another file") from None
    try:
        home.mkdir(parents=True, exist_ok=True)
        probe = home / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise Slipped(f"home: {home}: cannot be written: {error.strerror}; name another folder") from None


def limits_of(settings: NodeSettings) -> Limits:
    """What clients may send, and how slowly."""
    said = settings.limits
    return Limits(
        header_bytes=said.header_kb * KB,
        body_bytes=said.body_mb * MB,
        header_s=said.header_s,
        body_s=said.body_s,
        keepalive_s=said.keepalive_s,
        connections=said.connections,
    )


def certificates(settings: NodeSettings) -> tuple[ssl.SSLContext | None, ssl.SSLContext]:
    """TLS of the front, None where the settings name none; and what is trusted: the system's authorities, and the peers'.

    errors   Slipped for a file that cannot be used
    """
    said = settings.tls
    try:
        front = None
        if said.certificate is not None:
            front = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            front.load_cert_chain(said.certificate, said.key)
        trust = ssl.create_default_context()
        if said.peer_ca is not None:
            trust.load_verify_locations(said.peer_ca)
    except (OSError, ssl.SSLError) as error:
        raise Slipped(f"tls: {said.certificate or said.peer_ca}: cannot be used: {error}") from None
    return front, trust


def engine_key(settings: NodeSettings) -> Headers:
    """Headers with the engine's own API key.

    errors   Slipped when its file cannot be read, or holds no key
    """
    path = settings.backend.key_file
    if path is None:
        return []
    try:
        key = Path(path).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise Slipped(f"backend.key_file: {path}: cannot be read: {error}") from None
    if not key or not key.isprintable():
        raise Slipped(f"backend.key_file: {path}: must hold one key in one line, found {len(key.splitlines())} lines")
    return [(b"authorization", b"Bearer " + key.encode())]


async def emulated(settings: NodeSettings, clock: Clock) -> tuple[str, HttpServer]:
    """Start an emulated engine in this process; returns its URL and what to close."""
    from live_bridge.backends.emulated import Emulated

    engine = Emulated(profile_named(settings.profile), clock, settings.profile, settings.backend.seed)
    server = Server(engine.handle, Limits(), lambda _reason: None)
    port = await server.listen("127.0.0.1", 0)
    return f"http://127.0.0.1:{port}", server


def watcher_of(settings: NodeSettings, client: HttpClient, url: str, clock: Clock, count: Callable[[str], None]) -> Watcher:
    """What reads the engine's load; an emulated engine exports what vLLM does."""
    said = settings.backend
    kind = "vllm" if said.kind == "emulated" else said.kind
    # readings are real ones: under a faster clock they stay as rare on the wall as they are without
    metrics_s, stale_s = said.metrics_s * clock.speed, said.stale_s * clock.speed
    return Watcher(client, url, kind, clock, metrics_s, stale_s, engine_key(settings), count)


async def ledger_of(
    settings: NodeSettings, client: HttpClient, home: Path, joined: str | None, count: Callable[[str], None]
) -> LedgerPart:
    """Reach the network's ledger, or found one.

    joined   URL of the ledger that the joined node uses; None when this node joins nobody
    errors   Slipped when it does not answer, or is not what it was
    """
    try:
        return await _ledger_of(settings, client, home, joined, count)
    except (StoreError, JournalError) as error:
        raise Slipped(f"ledger: {error}") from None


async def _ledger_of(
    settings: NodeSettings, client: HttpClient, home: Path, joined: str | None, count: Callable[[str], None]
) -> LedgerPart:
    url = settings.ledger.url or joined
    if url is not None:
        ledger = await RemoteLedger.connect(client, url, network=settings.network, patience_s=LEDGER_PATIENCE_S)
        return LedgerPart(ledger, url, None)
    from live_bridge.ledger.start import start_ledger  # a node that joins needs no engine of a ledger

    local = await start_ledger(settings, load(home / "ledger.key"), time.time, count)
    return LedgerPart(local, "", LedgerRoutes(local, count))


def next_life(home: Path) -> int:
    """Count the lives of a node: each start outranks all that was said in earlier ones."""
    path = home / LIFE_FILE
    text = path.read_text(encoding="ascii", errors="replace").strip() if path.exists() else "0"
    if not text.isdecimal():
        raise Slipped(
            f"{path}: must hold the number of this node's starts, found {text[:20]!r}; write a number greater than any before"
        )
    life = int(text) + 1
    part = path.with_suffix(".next")
    with part.open("w", encoding="ascii") as file:
        file.write(f"{life}\n")
        file.flush()
        os.fsync(file.fileno())  # a number that was lost with the power would be used again
    part.replace(path)
    return life


async def settled(server: HttpServer | None) -> None:
    """Close a server that this node has started for itself."""
    if server is not None:
        server.close()
        await asyncio.sleep(0)


def identity_of(home: Path) -> Identity:
    """The node's own key."""
    return load(home / "node.key")


async def launched(settings: NodeSettings, client: HttpClient, home: Path) -> "Launched | None":
    """Start vLLM where the settings ask for it, and wait until it is healthy.

    errors   Slipped when it does not come up
    """
    said = settings.backend
    if said.launch is None:
        return None
    from live_bridge.backends.launch import Launched, LaunchError, command

    try:
        words = command(said.interpreter, said.launch, said.url, [str(word) for word in said.launch_args])
        engine = Launched(words, said.url, home / "engine.log", {})
        await engine.start()
    except LaunchError as error:
        raise Slipped(str(error)) from None
    try:
        await engine.ready(client, LAUNCH_S, LOG.info)
    except LaunchError as error:
        await engine.stop()
        raise Slipped(str(error)) from None
    except asyncio.CancelledError:  # the node is told to stop meanwhile
        await engine.stop()
        raise
    return engine
