"""Videos with changed bytes through the check and the decode of uploads: each is a clip or a named failure.

A file is worked on as the service does it (`pipelines/serve/library/sandbox.py`), with its limits of memory and of CPU
seconds, in a process of its own; that one is forked here from one that has loaded what it needs, because to start
Python takes longer than the work. The same seed changes the same bytes.
"""

from __future__ import annotations

import io
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
from av.video.stream import VideoStream

from pipelines.serve.library import sandbox
from vsr1.retrieval.added import SOURCE
from vsr1.settings.data import DataConfig
from vsr1.settings.parts import cores
from vsr1.settings.serving import UploadConfig
from vsr1.video.clips import ClipFolder

HANG_S = 60  # wall-clock seconds after which a process counts as hung; a film here takes less than a tenth of one
FILMS: tuple[tuple[str, str, dict[str, str]], ...] = (  # container, codec, options of the container
    ("mp4", "libx264", {"movflags": "faststart"}), ("mp4", "libx264", {"movflags": "frag_keyframe+empty_moov"}),
    ("mp4", "libx265", {}), ("mov", "mjpeg", {}), ("matroska", "libx264", {}), ("webm", "libvpx-vp9", {}),
    ("avi", "mpeg4", {}), ("flv", "libx264", {}), ("mpegts", "mpeg2video", {}), ("gif", "gif", {}),
)  # fmt: skip
PIXELS = {"gif": "rgb8", "mjpeg": "yuvj420p"}
Outcomes = Counter[str]


def bench_fuzz(files: int, seed: int) -> dict[str, Any]:
    """Change the bytes of small films and work on each; count what became of them.

    Returns:
        counts by outcome: `clip`, a code of the service, `limit` and `crash` (both of which the service names
            `decode_limit`), `unnamed` (a traceback) and `hung`, with an example of each of the last three; seconds, and
            the most memory of a process in MiB.
    """
    outcomes: Outcomes = Counter()
    examples: dict[str, str] = {}
    peak, running, began = 0, dict[int, Path](), time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        films = [_film(Path(place) / f"{index}.film", *film) for index, film in enumerate(FILMS)]
        for index in range(files + cores()):
            if len(running) == cores() or index >= files:
                if not running:
                    break
                pid, status, usage = os.wait4(-1, 0)
                folder = running.pop(pid)
                outcome, message = _outcome(folder, status)
                outcomes[outcome] += 1
                if outcome in ("crash", "unnamed", "hung"):
                    examples.setdefault(outcome, f"file {folder.name}: {message}")
                peak = max(peak, usage.ru_maxrss)
                _remove(folder)
            if index < files:
                folder = Path(place) / f"{index}"
                folder.mkdir()
                rng = random.Random(f"{seed}/{index}")
                (folder / SOURCE).write_bytes(changed(rng.choice(films), rng))
                running[_start(folder)] = folder
    return {
        "files": files,
        "outcomes": dict(outcomes.most_common()),
        "examples": examples,
        "seconds": time.monotonic() - began,
        "peak_memory_mib": peak / 2**10,
    }


def changed(content: bytes, rng: random.Random) -> bytes:
    """Return a file with some of its bytes changed, moved, lost or repeated; where headers are, more often."""
    data = bytearray(content)
    ways: list[Callable[[int, int], None]] = [
        lambda at, size: data.__setitem__(slice(at, at + size), rng.randbytes(size)),
        lambda at, size: data.__setitem__(slice(at, at + size), bytes(size)),
        lambda at, size: data.__setitem__(slice(at, at + size), b"\xff" * size),
        lambda at, size: data.__delitem__(slice(at, at + size)),
        lambda at, size: data.__setitem__(slice(at, at), data[at : at + size]),
        lambda at, size: data.__setitem__(slice(at, at), rng.randbytes(size)),
    ]
    for _ in range(rng.choice((1, 1, 2, 8, 32))):
        at = rng.randrange(rng.choice((64, 1024, len(data))))
        rng.choice(ways)(at, rng.choice((1, 1, 1, 2, 4, 64, 1024)))
    return bytes(data[: rng.randrange(len(data))] if rng.random() < 0.1 else data)


def _start(folder: Path) -> int:
    """Fork a process that checks and decodes `folder/source`, and return its id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # who called may have one of its own
        signal.alarm(HANG_S)
        with (folder / "errors").open("w") as errors, (folder / "answers").open("w") as answers:
            os.dup2(errors.fileno(), 2)
            sys.stderr, sys.stdout = errors, answers
            limits, data = UploadConfig(), DataConfig()
            bounds = {"cpu_s": int(limits.cpu_s), "memory": int(limits.memory_gib * 2**30)}
            most = [limits.max_pixels, limits.max_frames, limits.max_seconds]
            decode = {"decode": str(folder), "video_id": "film", "data": data.model_dump(mode="json")}
            for job in ({"check": str(folder / SOURCE), "limits": most}, decode):
                sys.stdin = io.StringIO(json.dumps(job | bounds))
                sandbox._main()
                answers.write("\n")
            if (folder / "film.npy").exists():
                ClipFolder(folder).read("film")
        code = 0
    except BaseException as error:
        (folder / "fault").write_text(f"{type(error).__name__}: {error}")
    finally:
        os._exit(code)


def _outcome(folder: Path, status: int) -> tuple[str, str]:
    if os.WIFSIGNALED(status):
        name = signal.Signals(os.WTERMSIG(status)).name
        return {"SIGALRM": "hung", "SIGXCPU": "limit"}.get(name, "crash"), name
    if os.WEXITSTATUS(status):
        fault = (folder / "fault").read_text()
        return ("limit" if fault.startswith("MemoryError") else "unnamed"), fault
    answers = [json.loads(line) for line in (folder / "answers").read_text().splitlines()]
    return answers[-1].get("code", "clip"), answers[-1].get("message", "")


def _remove(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


def _film(path: Path, container: str, codec: str, options: dict[str, str]) -> bytes:
    noise, rate = np.random.default_rng(0), 25
    with av.open(str(path), "w", format=container, options=options) as output:
        quiet = {"x265-params": "log-level=none:pools=1"} if codec == "libx265" else {}
        stream = cast(VideoStream, output.add_stream(codec, rate=rate, options=quiet | {"threads": "1"}))
        stream.width, stream.height, stream.pix_fmt = 64, 48, PIXELS.get(codec, "yuv420p")
        for index in range(2 * rate):
            image = noise.integers(0, 255, (6, 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=stream.pix_fmt)
            frame.pts, frame.time_base = index, Fraction(1, rate)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return path.read_bytes()
