"""Work on files from somebody else, in a process of its own with limits: what goes wrong there stays there.

FFmpeg reads what anybody may send. The process has a bounded address space, bounded CPU seconds and none of this one's
environment; it takes a job as JSON on its standard input and answers with JSON on its standard output.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vsr1.retrieval.added import SOURCE, Fault
from vsr1.settings.data import DataConfig
from vsr1.settings.serving import UploadConfig
from vsr1.video.check import RefusedVideoError, VideoLimits, check_video
from vsr1.video.clips import make_clip, write_meta
from vsr1.video.decode import VideoError
from vsr1.video.excerpt import write_excerpt

WALL_SECONDS_A_CPU_SECOND = 4  # the machine does other things too


class SandboxError(RuntimeError):
    """Work that failed; `fault` says why."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.message)
        self.fault = fault


async def check(source: Path, limits: UploadConfig) -> str:
    """As `check_video`; raises `SandboxError`."""
    return str(await _run(limits, {"check": str(source), "limits": asdict(_limits(limits))}))


async def decode(folder: Path, video_id: str, data: DataConfig, limits: UploadConfig) -> None:
    """Make the clip of `folder/source` and its `meta.jsonl` in the folder; raises `SandboxError`."""
    await _run(limits, {"decode": str(folder), "video_id": video_id, "data": data.model_dump(mode="json")})


async def cut(source: Path, target: Path, span: tuple[float, float], limits: UploadConfig) -> None:
    """As `write_excerpt`; raises `SandboxError`."""
    await _run(limits, {"cut": str(source), "target": str(target), "span": span})


def _limits(limits: UploadConfig) -> VideoLimits:
    return VideoLimits(limits.max_pixels, limits.max_frames, limits.max_seconds)


async def _run(limits: UploadConfig, job: dict[str, Any]) -> Any:
    # One thread of BLAS, or it reserves address space for every core of a large machine.
    own = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", __name__,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=own,
    )  # fmt: skip
    bounds = {"cpu_s": int(limits.cpu_s), "memory": int(limits.memory_gib * 2**30)}
    try:
        async with asyncio.timeout(limits.cpu_s * WALL_SECONDS_A_CPU_SECOND):
            written, said = await process.communicate(json.dumps(job | bounds).encode())
    except TimeoutError:
        raise SandboxError(_too_much(limits)) from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        if process.returncode > 0 and b"MemoryError" not in said:
            raise RuntimeError(f"a process that works on videos failed: {said.decode(errors='replace')[-2000:]}")
        raise SandboxError(_too_much(limits))
    answer = json.loads(written)
    if "fault" in answer:
        raise SandboxError(Fault.model_validate(answer["fault"]))
    return answer["done"]


def _too_much(limits: UploadConfig) -> Fault:
    return Fault(
        code="decode_limit",
        message=f"decoding the video takes more than serve.upload.cpu_s={limits.cpu_s:g} or "
        f"serve.upload.memory_gib={limits.memory_gib:g}; encode it smaller or shorter, or raise them",
    )


def _work(job: dict[str, Any]) -> Any:
    if "check" in job:
        return check_video(Path(job["check"]), VideoLimits(**job["limits"]))
    if "cut" in job:
        return write_excerpt(Path(job["cut"]), Path(job["target"]), *job["span"])
    folder = Path(job["decode"])
    row = make_clip(folder, job["video_id"], folder / SOURCE, DataConfig.model_validate(job["data"]))
    write_meta(folder, [row | {"source_video_path": SOURCE}])
    return None


def _main() -> None:
    job = json.load(sys.stdin)
    resource.setrlimit(resource.RLIMIT_AS, (job["memory"], job["memory"]))
    resource.setrlimit(resource.RLIMIT_CPU, (job["cpu_s"], job["cpu_s"]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        answer: dict[str, Any] = {"done": _work(job)}
    except RefusedVideoError as error:
        if isinstance(error.__cause__ and error.__cause__.__cause__, MemoryError):
            raise MemoryError from error
        answer = {"fault": {"code": error.code, "message": str(error)}}
    except VideoError as error:
        if isinstance(error.__cause__, MemoryError):
            raise MemoryError from error
        answer = {"fault": {"code": "not_a_video", "message": error.reason}}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    _main()
