"""`live_bridge emulate`: an emulated engine as a server of its own, where a real one would stand."""

import argparse
import asyncio
import signal
import sys

import uvloop

from live_bridge.backends.emulated import Emulated
from live_bridge.clock import Clock
from live_bridge.config import profile_named
from live_bridge.http.message import Limits
from live_bridge.http.server import Server

DRAIN_S = 5.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the command takes."""
    parser.add_argument("--profile", required=True, help="what the engine costs: a name in conf/serving, or a YAML file")
    parser.add_argument("--model", help="the name it serves (default: that of the profile)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="0 = any that is free (default: %(default)s)")
    parser.add_argument("--speed", type=float, default=1.0, help="market seconds per second on the wall (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the lengths of answers (default: %(default)s)")
    parser.add_argument(
        "--answer-tokens", type=float, default=256.0, help="mean length of answers that end by themselves (default: %(default)s)"
    )
    parser.add_argument("--stream-interval", type=int, default=1, help="tokens in an event of a stream (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Serve until SIGINT or SIGTERM."""
    name = args.profile.rsplit("/", 1)[-1].removesuffix(".yaml")
    emulated = Emulated(
        profile_named(args.profile), Clock(args.speed), args.model or name, args.seed, args.answer_tokens, args.stream_interval
    )
    uvloop.run(_serve(emulated, args.host, args.port))
    return 0


def _ignore(event: str) -> None:
    """Nobody reads this server's counts of HTTP events."""


async def _serve(emulated: Emulated, host: str, port: int) -> None:
    server = Server(emulated.handle, Limits(), _ignore)
    bound = await server.listen(host, port)
    sys.stdout.write(f"{emulated.model} at http://{host}:{bound}\n")
    sys.stdout.flush()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await stop.wait()
    await server.drain(DRAIN_S)
    emulated.engine.close()
