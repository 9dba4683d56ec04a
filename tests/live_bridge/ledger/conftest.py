"""A real PostgreSQL server for those tests that want one; they skip, and say why, where there is none."""

import itertools
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from live_bridge.ledger.memory import MemoryStore
from live_bridge.ledger.sqlite import SqliteStore
from live_bridge.ledger.store import Store

_schemas = itertools.count()


def _programs() -> Path | None:
    found = shutil.which("initdb")
    if found is not None:
        return Path(found).resolve().parent  # all its programs stand there, though not all may be on the path
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return installed[-1].parent if installed else None


def _wait_for(programs: Path, folder: Path) -> None:
    """Ask until the server answers; it has no other way of saying that it is ready."""
    until_s = time.monotonic() + 30.0
    while subprocess.run([f"{programs}/pg_isready", "-q", "-h", str(folder)], check=False).returncode != 0:
        assert time.monotonic() < until_s, (folder / "log").read_text()
        time.sleep(0.05)


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """Address of a server that lives as long as the tests."""
    programs = _programs()
    if programs is None:
        pytest.skip("no PostgreSQL on this machine: apt-get install postgresql")
    folder = Path(tempfile.mkdtemp(prefix="pg", dir="/tmp"))
    as_owner: list[str] = []
    if os.geteuid() == 0:  # the server refuses to run as root
        if subprocess.run(["id", "postgres"], capture_output=True, check=False).returncode != 0:
            pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
        shutil.chown(folder, "postgres", "postgres")
        as_owner = ["runuser", "-u", "postgres", "--"]

    def run(*words: str) -> None:
        subprocess.run([*as_owner, *words], check=True, cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    cluster = f"{folder}/cluster"
    run(f"{programs}/initdb", "-D", cluster, "-U", "postgres", "-A", "trust", "--no-sync", "-E", "UTF8", "--locale=C.UTF-8")
    options = f"-c listen_addresses= -c unix_socket_directories={folder} -c max_connections=100"
    # the server ends when our end of the pipe does: not even tests that are killed leave one behind
    guarded = f"{programs}/postgres -D {cluster} {options} >{folder}/log 2>&1 & cat; kill -TERM $!; wait"
    with subprocess.Popen([*as_owner, "sh", "-c", guarded], stdin=subprocess.PIPE, cwd="/") as server:
        try:
            _wait_for(programs, folder)
            yield f"postgresql://postgres@/postgres?host={folder}"
        finally:
            assert server.stdin is not None
            server.stdin.close()
            server.wait(timeout=30)
            shutil.rmtree(folder)


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], "object"]:
    """Opens one and the same store, each time it is called; a coroutine."""
    if request.param == "postgres":
        dsn = request.getfixturevalue("postgres")
        from live_bridge.ledger.postgres import PostgresStore

        schema = f"t{next(_schemas)}"

        async def open_postgres() -> Store:
            return await PostgresStore.connect(dsn, schema)

        return open_postgres
    kept = MemoryStore()

    async def open_other() -> Store:
        return kept if request.param == "memory" else SqliteStore(tmp_path / "ledger.sqlite")

    return open_other
