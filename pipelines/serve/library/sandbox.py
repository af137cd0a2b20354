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
from pathlib import Path
from typing import Any

from pipelines.serve.gateway.faults import FULL_DISK, ApiError
from vsr1.retrieval.added import SOURCE
from vsr1.settings.data import DataConfig
from vsr1.settings.serving import UploadConfig
from vsr1.video.check import MEDIA_TYPES, RefusedVideoError, VideoLimits, check_video
from vsr1.video.clips import make_clip, write_meta
from vsr1.video.container import VideoError
from vsr1.video.excerpt import write_excerpt

OUT_OF_MEMORY = (b"MemoryError", b"Cannot allocate memory")  # how Python and the system say it
WEBM, WEBM_MARK = "video/webm", b"\x42\x82\x84webm"  # the DocType of a Matroska file that browsers play
WALL_SECONDS_A_CPU_SECOND = 4  # the machine does other things too


async def check(source: Path, limits: UploadConfig) -> str:
    """Return the media type of a file, see `check_video`; raise ApiError for one that is refused."""
    most = (limits.max_pixels, limits.max_frames, limits.max_seconds)
    return str(await _run(limits, {"check": str(source), "limits": most}))


async def decode(folder: Path, video_id: str, data: DataConfig, limits: UploadConfig) -> None:
    """Make the clip of `folder/source` and its `meta.jsonl` in the folder; raise ApiError as `check`."""
    await _run(limits, {"decode": str(folder), "video_id": video_id, "data": data.model_dump(mode="json")})


async def cut(source: Path, target: Path, span: tuple[float, float], limits: UploadConfig) -> None:
    """Write a part of a video, see `write_excerpt`; raise ApiError as `check`."""
    await _run(limits, {"cut": str(source), "target": str(target), "span": span})


async def _run(limits: UploadConfig, job: dict[str, Any]) -> Any:
    # One thread of BLAS, or it reserves address space for every core of a large machine.
    limited = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"), "1")
    environment = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **limited}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", __name__,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=environment,
    )  # fmt: skip
    bounds = {"cpu_s": int(limits.cpu_s), "memory": int(limits.memory_gib * 2**30)}
    too_much = ApiError(
        "decode_limit",
        f"decoding the video takes more than serve.upload.cpu_s={limits.cpu_s:g} or "
        f"serve.upload.memory_gib={limits.memory_gib:g}; encode it smaller or shorter, or raise them",
    )
    try:
        async with asyncio.timeout(limits.cpu_s * WALL_SECONDS_A_CPU_SECOND):
            output, errors = await process.communicate(json.dumps(job | bounds).encode())
    except TimeoutError:
        raise too_much from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        if process.returncode > 0 and not any(words in errors for words in OUT_OF_MEMORY):
            raise RuntimeError(f"a process that works on videos failed: {errors.decode(errors='replace')[-2000:]}")
        raise too_much
    answer = json.loads(output)
    if "code" in answer:
        raise ApiError(answer["code"], answer["message"])
    return answer["result"]


def _work(job: dict[str, Any]) -> Any:
    if "check" in job:
        kind = check_video(Path(job["check"]), VideoLimits(*job["limits"]))
        with open(job["check"], "rb") as file:
            return WEBM if kind == MEDIA_TYPES["matroska"] and WEBM_MARK in file.read(256) else kind
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
        answer: dict[str, Any] = {"result": _work(job)}
    except RefusedVideoError as error:
        if isinstance(error.__cause__ and error.__cause__.__cause__, MemoryError):
            raise MemoryError from error
        answer = {"code": error.code, "message": str(error)}
    except VideoError as error:
        if isinstance(error.__cause__, MemoryError):
            raise MemoryError from error
        answer = {"code": "not_a_video", "message": error.reason}
    except OSError as error:
        if error.errno not in FULL_DISK:
            raise
        answer = {"code": "disk_full", "message": "the disk of the server is full"}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    _main()
