"""`live_bridge ledger`: serve one alone, audit one, list its accounts."""

import argparse
import asyncio
import signal
import sys
import time
from pathlib import Path
from typing import Any

from live_bridge.config import NodeSettings, node_settings
from live_bridge.http import client_of, server_of
from live_bridge.http.message import HttpError, Limits
from live_bridge.identity import load
from live_bridge.ledger.audit import Finding, Verdict, audit_store, audit_url
from live_bridge.ledger.journal import JournalError, read_founding
from live_bridge.ledger.ledger import View, matured
from live_bridge.ledger.remote import PREFIX, read_json, read_view
from live_bridge.ledger.service import LedgerRoutes
from live_bridge.ledger.sqlite import SqliteStore
from live_bridge.ledger.start import KEY, start_ledger
from live_bridge.ledger.store import Store, StoreError
from live_bridge.slip import Slipped
from market.terms import MICRO

WORDS = {
    "listen": "listen",
    "home": "home",
    "network": "network",
    "market": "market",
    "engine": "ledger.engine",
    "dsn": "ledger.dsn",
    "speed": "speed",
}
"""Words with a dash, and the setting that each stands for."""
DRAIN_S = 5.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the words of the command line."""
    jobs = parser.add_subparsers(dest="ledger_job", required=True, metavar="serve | audit | accounts")
    serve = jobs.add_parser("serve", help="run a ledger of its own, for nodes whose ledger.url is its address")
    serve.add_argument("--config", type=Path, metavar="FILE", help="YAML file of settings that differ from conf/live/node.yaml")
    for word, key in WORDS.items():
        kind = float if word == "speed" else str
        serve.add_argument(f"--{word}", type=kind, metavar=word.upper(), help=f"the setting {key}")
    meanings = {
        "audit": "prove chain, signatures, rules, conservation and balances from the journal; exit status 1 when one is wrong",
        "accounts": "list all accounts, in credits",
    }
    for job, meaning in meanings.items():
        asked = jobs.add_parser(job, help=meaning)
        asked.add_argument(
            "where", metavar="FILE_OR_URL", help="HOME/ledger.sqlite, http://HOST:PORT, or postgresql://USER@HOST/NAME"
        )


def run(args: argparse.Namespace) -> int:
    """Do the job; returns the exit status.

    errors   Slipped, SettingsError, IdentityError
    """
    jobs = {"serve": _serve, "audit": _audit, "accounts": _accounts}
    try:
        return asyncio.run(jobs[args.ledger_job](args))
    except (StoreError, JournalError, HttpError) as error:
        raise Slipped(str(error)) from error


def _settings(args: argparse.Namespace) -> NodeSettings:
    spoken: dict[str, Any] = {key: getattr(args, word) for word, key in WORDS.items() if getattr(args, word) is not None}
    if "speed" in spoken:
        spoken["backend.kind"] = (
            "emulated"  # a ledger has no engine; only markets of emulated ones run faster than the wall's clock
        )
    return node_settings(args.config, spoken)


async def _serve(args: argparse.Namespace) -> int:
    settings = _settings(args)
    identity = load(Path(settings.home) / KEY)
    ledger = await start_ledger(settings, identity, time.time, _ignore)
    server = server_of(settings.http, LedgerRoutes(ledger, _ignore).handle, _limits(settings), _ignore)
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    host, port = settings.address()
    try:
        port = await server.listen(host, port)
    except OSError as error:
        await ledger.close()
        raise Slipped(f"listen: cannot use {settings.listen}: {error}; choose another port") from error
    _say(f"ledger {identity.id} of network {settings.network} at http://{host}:{port}{PREFIX}")
    await stop.wait()
    await server.drain(DRAIN_S)
    await ledger.close()
    return 0


def _limits(settings: NodeSettings) -> Limits:
    own = settings.limits
    return Limits(
        header_bytes=own.header_kb * 1024, body_bytes=own.body_mb * 2**20, header_s=own.header_s, body_s=own.body_s,
        keepalive_s=own.keepalive_s, connections=own.connections,
    )  # fmt: skip


def _ignore(name: str) -> None:
    """Count nothing: a ledger that runs alone has no metrics."""


async def _store(where: str) -> Store:
    if where.startswith(("postgresql://", "postgres://")):
        from live_bridge.ledger.postgres import PostgresStore

        return await PostgresStore.connect(where, make=False)
    return SqliteStore(Path(where), make=False)


async def _audit(args: argparse.Namespace) -> int:
    try:
        verdict = await _proved(args.where)
    except Finding as finding:
        sys.stderr.write(f"{args.where}: {finding}\n")
        return 1
    minted = verdict.minted_micro / MICRO
    _say(
        f"{args.where}: {verdict.entries} entries, {verdict.accounts} accounts, {minted:.6f} credits minted and all there, "
        f"{verdict.open_holds} open holds; chain, signatures, rules and balances are good; head {verdict.digest}"
    )
    return 0


async def _proved(where: str) -> Verdict:
    if where.startswith(("http://", "https://")):
        client = client_of("own")
        try:
            return await audit_url(client, where.rstrip("/"))
        finally:
            await client.close()
    store = await _store(where)
    try:
        if isinstance(store, SqliteStore):
            sound = await store.integrity()
            if sound != "ok":
                raise Finding(None, f"the file is damaged: {sound}")
        return await audit_store(store)
    finally:
        await store.close()


async def _accounts(args: argparse.Namespace) -> int:
    view = await _view(args.where)
    _say(f"{'account':<40} {'credit':>16} {'stake':>16} {'unbonding':>16} {'escrow':>16}")
    for name, row in sorted(view.accounts.items()):
        _say(f"{name:<40} " + " ".join(f"{part / MICRO:>16.6f}" for part in row))
    return 0


async def _view(where: str) -> View:
    if where.startswith(("http://", "https://")):
        client = client_of("own")
        try:
            url = f"{where.rstrip('/')}{PREFIX}"
            founding = read_founding((await read_json(client, "GET", f"{url}head", b""))["founding"].encode())
            return read_view(await read_json(client, "GET", f"{url}accounts", b""), founding)
        finally:
            await client.close()
    store = await _store(where)
    try:
        await store.head()
        founding = read_founding((await store.journal(0, 1))[0].body)
        at_us = founding.at_us(time.time())
        holdings = await store.holdings(at_us)
        return View(holdings.head, at_us, matured(holdings.rows, at_us))
    finally:
        await store.close()


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
