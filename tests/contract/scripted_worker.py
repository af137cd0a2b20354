"""A rollout worker with an engine that plays what it is told, in a process of its own like vLLM's: `cat`.

A task's query is a command: seconds to play, `fail`, `die`, `engine dies`, `wedge` (the engine gives no token any more)
or `hang` (this episode never ends).
"""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import ray

from actors.rollout import RolloutWorkerActor, Sampling
from vsr1.search.record import SearchTask, SearchTrajectory
from vsr1.settings.parts import AgentConfig


class ScriptedEngine:
    """What a worker asks of a `PolicyEngine`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process, self.signs, self.weight_version = process, 0, 0
        self.is_wedged, self.inside, self._turn = False, 0, asyncio.Lock()

    @classmethod
    async def start(cls) -> "ScriptedEngine":
        pipe = asyncio.subprocess.PIPE
        return cls(await asyncio.create_subprocess_exec("cat", stdin=pipe, stdout=pipe))

    async def one_token(self) -> None:
        self.signs += 1  # as a request that is taken does
        while self.is_wedged:
            await asyncio.sleep(0.05)
        async with self._turn:
            assert self.process.stdin is not None and self.process.stdout is not None
            self.process.stdin.write(b"token\n")
            if await self.process.stdout.readline() != b"token\n":
                raise RuntimeError("the engine process is gone")
        self.signs += 1

    @property
    def is_idle(self) -> bool:
        return self.inside == 0

    @property
    def is_dead(self) -> bool:
        return self.process.returncode is not None

    def outlived(self) -> None:
        with suppress(ChildProcessError):  # asyncio was faster
            os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)

    def shutdown(self) -> None:
        self.process.kill()


class ScriptedWorkerActor(RolloutWorkerActor):
    """`pull_s`: seconds that weights take. `refuses`: version that it does not take.

    `start` and `pull`: files without which it does not start, or takes no weights.
    """

    def __init__(
        self, pull_s: float = 0.0, refuses: int = -1, start: Path | None = None, pull: Path | None = None
    ) -> None:
        self._pull_s, self._refuses, self._start, self._pull = pull_s, refuses, start, pull
        self._pushes: list[int] = []
        self._engine: Any = None

    async def _start_engine(self) -> Any:
        await _there(self._start)
        return await ScriptedEngine.start()

    async def rollout(
        self, split: str, task: SearchTask, agent: AgentConfig, sampling: Sampling, finished: Sequence[Any] = ()
    ) -> AsyncIterator[SearchTrajectory]:
        engine: Any = self._engine
        engine.inside += 1
        try:
            await self._act(task.query)
        except (RuntimeError, OSError):
            if engine.is_dead or await engine.process.wait():
                os._exit(1)
            raise
        finally:
            engine.inside -= 1
        trajectory = SearchTrajectory(task)
        trajectory.reward = float(engine.weight_version)
        yield trajectory

    async def _act(self, query: str) -> None:
        engine: Any = self._engine
        match query:
            case "fail":
                raise ValueError("no such video")
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "engine dies":
                engine.process.kill()
                await engine.process.wait()
            case "wedge":
                engine.is_wedged = True
            case "hang":
                await asyncio.sleep(3600)
            case seconds:
                for _ in range(max(1, int(float(seconds) / 0.05))):
                    await asyncio.sleep(0.05)
                    await engine.one_token()
        await engine.one_token()

    async def push(self, way: str, sent: Any, version: int) -> str:
        self._pushes.append(version)
        await asyncio.sleep(self._pull_s)
        await _there(self._pull)
        if version == self._refuses:
            raise RuntimeError("head.weight: other values than were sent")
        self._engine.weight_version = version
        return f"print {version}"

    async def processes(self) -> tuple[int, int]:
        """Return the ids of this process and of its engine."""
        return os.getpid(), self._engine.process.pid

    async def pushes(self) -> list[int]:
        """Return the versions of all weights that it was sent."""
        return self._pushes


async def _there(file: Path | None) -> None:
    while file is not None and not file.exists():
        await asyncio.sleep(0.05)


ScriptedWorker: Any = ray.remote(num_cpus=0, concurrency_groups={"health": 2})(ScriptedWorkerActor)


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
