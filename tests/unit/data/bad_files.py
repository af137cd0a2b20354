"""Small videos of many kinds, and files that are none in many ways."""

import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

RATE, SECONDS = 4, 6
KINDS = {  # ending: container and codec
    "mp4": ("mp4", "libx264"), "mkv": ("matroska", "libx264"), "webm": ("webm", "libvpx"), "avi": ("avi", "mpeg4"),
    "mov": ("mov", "mjpeg"), "m4v": ("mp4", "mpeg4"), "ts": ("mpegts", "libx264"), "MTS": ("mpegts", "mpeg2video"),
    "flv": ("flv", "libx264"), "wmv": ("asf", "wmv2"), "3gp": ("3gp", "mpeg4"), "ogv": ("ogg", "libvpx"),
    "gif": ("gif", "gif"), "nut": ("nut", "ffv1"), "MOV": ("mov", "libx265"),
    "y4m": ("yuv4mpegpipe", "wrapped_avframe"),
}  # fmt: skip
PIXELS = {"gif": "rgb8", "mjpeg": "yuvj420p"}


def film(path: Path, kind: str = "mp4", size: tuple[int, int] = (64, 48), seconds: int = SECONDS) -> bytes:
    """Write a film of the container and codec of an ending, and return its bytes."""
    container, codec = KINDS[kind]
    rate = 25 if codec == "mpeg2video" else RATE
    with av.open(str(path), "w", format=container, options={"movflags": "faststart"}) as output:
        options = {"x265-params": "log-level=none"} if codec == "libx265" else {}
        stream = output.add_stream(codec, rate=rate, options=options)
        stream.width, stream.height = size
        stream.pix_fmt = PIXELS.get(codec, "yuv420p")
        noise = np.random.default_rng(len(kind))
        for index in range(rate * seconds):
            image = noise.integers(0, 255, (size[1] // 8, size[0] // 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=stream.pix_fmt)
            frame.pts, frame.time_base = index, Fraction(1, rate)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return path.read_bytes()


def sound(path: Path) -> bytes:
    with av.open(str(path), "w", format="mp4") as output:
        stream = output.add_stream("aac", rate=48_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 48_000), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 48_000, 0, Fraction(1, 48_000)
        output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return path.read_bytes()


def bad_contents(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Yield 34 endings and contents, each bad in a way of its own."""
    films = {kind: film(folder / f"whole.{kind}", kind) for kind in ("mp4", "mkv", "webm", "avi", "mov", "flv", "ts")}
    mp4, noise = films["mp4"], np.random.default_rng(0).bytes(5000)
    yield "mp4", b""
    yield "mp4", b"\0"
    yield "mp4", b"\0" * 5000
    yield "mp4", noise
    yield "mkv", b"\x1aE\xdf\xa3" + noise
    yield "avi", b"RIFF" + noise
    yield "flv", b"FLV\x01" + noise
    yield "mp4", b"<!DOCTYPE html><html><body>404 Not Found</body></html>"
    yield "mp4", b"PK\x03\x04" + noise
    yield "mp4", b"\x1f\x8b\x08" + noise
    yield "mp4", b"#EXTM3U\n#EXTINF:10,\nhttp://127.0.0.1:9/a.ts\n"
    yield "mp4", b"ffconcat version 1.0\nfile /etc/hostname\n"
    yield "mp4", b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
    yield "mp4", b"%PDF-1.7\n" + noise
    yield "mp4", b"SQLite format 3\0" + noise
    yield "mp4", sound(folder / "sound.mp4")
    for share in (0.3, 0.6, 0.75):
        yield "mp4", mp4[: int(len(mp4) * share)]
    for kind in ("mkv", "webm", "mov", "flv"):
        yield kind, films[kind][: len(films[kind]) // 2]
    yield "mp4", mp4[: mp4.index(b"mdat") + 4]
    yield "mp4", mp4.replace(b"moov", b"junk")
    yield "mp4", mp4.replace(b"avc1", b"xxxx")
    yield "mp4", mp4.replace(b"stco", b"xxxx")
    yield "mp4", mp4.replace(b"stsd", b"xxxx")
    yield "mp4", mp4[: mp4.index(b"mdat") + 4] + noise
    yield "mp4", mp4[100:]
    yield "ts", films["ts"] + films["ts"]
    yield "mkv", films["mkv"][:400]
    yield "mp4", mp4[:-2000] + b"\0" * 2000
    yield "avi", films["avi"][:3000]


def mixed_folder(folder: Path, good: int) -> tuple[list[str], list[str]]:
    """Fill a folder with `good` videos of all kinds and 37 bad ones; return the ids of both."""
    folder.mkdir(parents=True)
    scratch = folder.with_name("scratch")
    scratch.mkdir()
    contents = {kind: film(scratch / f"good.{kind}", kind) for kind in KINDS}
    sound_ids, bad_ids = [], []
    for index in range(good):
        kind = list(KINDS)[index % len(KINDS)]
        name = f"good {index:03}" if index % 7 else f"gut-{index:03}_ü 日本 #%?&'"
        (folder / f"{name}.{kind}").write_bytes(contents[kind])
        sound_ids.append(name)
    for index, (kind, content) in enumerate(bad_contents(scratch)):
        (folder / f"bad {index:02}.{kind}").write_bytes(content)
        bad_ids.append(f"bad {index:02}")
    (folder / "bad link.mp4").symlink_to("nowhere.mp4")
    os.mkfifo(folder / "bad pipe.mp4")
    film(scratch / "ribbon.mp4", size=(4240, 16))
    (scratch / "ribbon.mp4").rename(folder / "bad ribbon.mp4")
    return sound_ids, [*bad_ids, "bad link", "bad pipe", "bad ribbon"]
