"""Tries a policy in a process of its own before a node takes it: one that eats memory, hangs or crashes harms nobody.

`python -m live_bridge.trial POLICY` loads the policy, asks it once, and ends with status 0, or 2 and a line that says why not.
"""

import asyncio
import hashlib
import os
import resource
import sys

import numpy as np

from agents.card import CARD_FILE, POLICY_FILE, PolicyError
from agents.names import folder_of
from live_bridge.pilot import ask, fenced, look_at
from market.action import MASK_SIZE
from market.observation import OBSERVATION_SIZE

PATIENCE_S = 10.0
"""On the wall, most of it to start a process on a busy machine."""
MEMORY_BYTES = 4 << 30
"""Of address space, of which the libraries take the most."""
CPU_S = 8
CONTROL_S = 5.0
"""Market seconds between decisions: of no weight, since it is asked once."""
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


class Trials:
    """Which policies have passed: the same bytes are tried once."""

    def __init__(self) -> None:
        self._passed: set[str] = set()

    async def try_out(self, name: str) -> None:
        """Try a policy by name or folder; one without a folder needs no trial.

        errors   PolicyError
        """
        found = await asyncio.to_thread(digest_of, name)
        if found and found not in self._passed:
            await _run(name)
            self._passed.add(found)


async def _run(name: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "live_bridge.trial", name),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env={**os.environ, **ONE_THREAD},
    )
    try:
        async with asyncio.timeout(PATIENCE_S):
            said, _ = await process.communicate()
    except TimeoutError:
        raise PolicyError(f"policy: {name} has not answered within {PATIENCE_S:g} s on trial; export it again") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode == 2:
        raise PolicyError(said.decode(errors="replace").strip())
    if process.returncode:
        raise PolicyError(f"policy: {name} has ended its trial with status {process.returncode}; export it again")


def digest_of(name: str) -> str:
    """SHA-256 of a policy's files; empty for a policy without a folder, or one that is not whole.

    errors   PolicyError for files that are not even looked into
    """
    folder = folder_of(name)
    if folder is None:
        return ""
    look_at(folder)
    digest = hashlib.sha256(str(folder.resolve()).encode())
    for file in (folder / CARD_FILE, folder / POLICY_FILE):
        if not file.is_file():
            return ""
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()


def main(words: list[str]) -> int:
    """Load and ask; returns the exit status."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        policy = fenced(words[0], CONTROL_S, 0).policy
    except PolicyError as error:
        sys.stdout.write(f"{error}\n")
        return 2
    seen = np.zeros((1, OBSERVATION_SIZE), np.float32), np.ones((1, MASK_SIZE), np.int8)
    verdict = ask(policy, *seen)
    if verdict.action is None:
        sys.stdout.write(f"policy: {words[0]} makes no decision ({verdict.failure}); export it again\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
