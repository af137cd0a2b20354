"""Files of every kind that players show otherwise than a naive reader: turned, late, stretched, cut, damaged, repeated.

Frame i of a film has its number as bars on the left half and is black on the right, so that it can be told from the
others and which way up it is.
"""

from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition
from PIL import Image

from vsr1.settings.data import DataConfig
from vsr1.video.clips import ClipFolder, make_clip, player_offset, write_meta
from vsr1.video.container import VideoError, open_video, read_packets
from vsr1.video.decode import SampledVideo, probe_video, sample_video
from vsr1.video.excerpt import write_excerpt

RATE, COUNT, WIDTH, HEIGHT = 4, 40, 96, 64  # 10 seconds


def picture(index: int) -> np.ndarray:
    """White bars on the left half for the bits of a number from the top, the first always."""
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for bit in range(8):
        if bit == 0 or index >> (bit - 1) & 1:
            image[8 * bit : 8 * bit + 8, : WIDTH // 2] = 235
    return image


def number(image: np.ndarray) -> int:
    """Read the number of an upright picture of any size; -1 if it is not upright."""
    high, wide = image.shape[:2]
    rows = [image[int(high * (bit + 0.5) / 8), wide // 4].mean() > 120 for bit in range(8)]
    right = image[int(high / 16), 3 * wide // 4].mean()
    return -1 if right > 120 or not rows[0] else sum(1 << bit for bit in range(7) if rows[bit + 1])


def draw(
    output: av.container.OutputContainer, stream: av.VideoStream, ticks: Iterable[int] = range(COUNT), rate: int = RATE
) -> None:
    """Write the pictures of a film, shown from these ticks of 1/rate seconds on."""
    stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
    for index, tick in enumerate(ticks):
        frame = av.VideoFrame.from_ndarray(picture(index), format="rgb24").reformat(format="yuv420p")
        frame.pts, frame.time_base = tick, Fraction(1, rate)
        output.mux(stream.encode(frame))
    output.mux(stream.encode())


def film(
    path: Path, codec: str = "libx264", *, first: float = 0.0, ticks: list[int] | None = None, sound: bool = False,
    longer: float = 0.0, aspect: Fraction | None = None, matrix: list[int] | None = None, **options: str,
) -> Path:  # fmt: skip
    with av.open(str(path), "w", options=options) as output:
        stream = output.add_stream(codec, rate=RATE, options={"g": "8", "bf": "0"} if codec == "libx264" else {})
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        voice = output.add_stream("aac", rate=48_000, layout="mono") if sound else None
        draw(output, stream, [tick + round(first * RATE) for tick in (range(COUNT) if ticks is None else ticks)])
        if voice:
            for index in range(int((first + COUNT / RATE + longer) * 48_000 / 960)):
                tone = av.AudioFrame.from_ndarray(np.zeros((1, 960), np.float32), format="fltp", layout="mono")
                tone.sample_rate, tone.pts, tone.time_base = 48_000, index * 960, Fraction(1, 48_000)
                output.mux(voice.encode(tone))
            output.mux(voice.encode())
    if matrix:
        content = path.read_bytes()
        place = content.index(b"tkhd") + 4 + 4 + 20 + 8 + 8  # version, times and id, reserved, layer and volume
        patched = b"".join(int(value).to_bytes(4, "big", signed=True) for value in matrix)
        path.write_bytes(content[:place] + patched + content[place + 36 :])
    return path


def sample(path: Path, **options: int) -> SampledVideo:
    return sample_video(path, **{"fps": 1, "max_frames": 64, "max_pixels": 200_704} | options)


def numbers(got: SampledVideo) -> list[int]:
    return [number(image) for image in got.frames]


ONE, FINE = 1 << 16, 1 << 30
TURNS = {  # name: the 2x2 part of the matrix, and what makes an upright picture of what is stored
    "as stored": ((ONE, 0, 0, ONE), lambda image: image),
    "mirror": ((-ONE, 0, 0, ONE), lambda image: image[:, ::-1]),
    "flip": ((ONE, 0, 0, -ONE), lambda image: image[::-1]),
    "180": ((-ONE, 0, 0, -ONE), lambda image: image[::-1, ::-1]),
    "90": ((0, ONE, -ONE, 0), lambda image: np.rot90(image, -1)),
    "270": ((0, -ONE, ONE, 0), lambda image: np.rot90(image, 1)),
    "transposed": ((0, ONE, ONE, 0), lambda image: image.swapaxes(0, 1)),
    "transposed back": ((0, -ONE, -ONE, 0), lambda image: np.rot90(image, 2).swapaxes(0, 1)),
}


@pytest.mark.parametrize("turn", TURNS)
def test_a_picture_is_turned_and_mirrored_as_its_matrix_says(tmp_path: Path, turn: str) -> None:
    (a, b, c, d), shown = TURNS[turn]
    path = film(tmp_path / "a.mp4", matrix=[a, b, 0, c, d, 0, 0, 0, FINE])
    got = sample(path)
    for index, image in zip(got.indices, got.frames, strict=False):
        assert np.abs(image.astype(int) - shown(picture(index)).astype(int)).mean() < 12
    write_excerpt(path, tmp_path / "part.mp4", 2.0, 4.0)
    part = sample(tmp_path / "part.mp4", fps=4)
    assert np.abs(part.frames[0].astype(int) - shown(picture(8)).astype(int)).mean() < 12


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "mov", "ts"])
def test_pictures_that_begin_after_the_sound_keep_their_seconds(tmp_path: Path, suffix: str) -> None:
    path = film(tmp_path / f"a.{suffix}", first=2.0, sound=True)
    got = sample(path)
    assert got.timestamps[0] == pytest.approx(2.0, abs=0.05)
    at = [round((time - 2.0) * RATE) for time in got.timestamps]
    assert numbers(got) == at
    assert got.duration == pytest.approx(12.0, abs=0.05)
    assert probe_video(path) == pytest.approx(12.0, abs=0.05)
    write_excerpt(path, tmp_path / "part.mp4", 3.1, 5.0)
    assert number(sample(tmp_path / "part.mp4", fps=4).frames[0]) == 4


@pytest.mark.parametrize(("suffix", "start"), [("mp4", 5.0), ("mkv", 5.0)])
def test_a_late_first_picture_is_zero_and_players_are_told_the_rest(tmp_path: Path, suffix: str, start: float) -> None:
    path = film(tmp_path / f"a.{suffix}", first=start)
    row = make_clip(tmp_path / "clips", "a", path, DataConfig())
    write_meta(tmp_path / "clips", [row])
    clip = ClipFolder(tmp_path / "clips").read("a")
    assert (clip.timestamps[0], clip.seconds) == (0.0, pytest.approx(10.0, abs=0.01))
    assert player_offset(row) == pytest.approx(start)
    assert [number(image) for image in clip.frames] == [round(time * RATE) for time in clip.timestamps]


def test_the_length_is_the_true_one_not_the_last_frame_and_a_mean_distance(tmp_path: Path) -> None:
    path = film(tmp_path / "a.mp4")
    row = make_clip(tmp_path / "clips", "a", path, DataConfig(max_frames=2))
    write_meta(tmp_path / "clips", [row])
    assert ClipFolder(tmp_path / "clips").read("a").seconds == pytest.approx(10.0)
    assert ClipFolder(tmp_path / "clips", "legacy_index").read("a").seconds == 2.0


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "mov"])
def test_sound_that_goes_on_after_the_pictures_makes_a_film_no_longer(tmp_path: Path, suffix: str) -> None:
    got = sample(film(tmp_path / f"a.{suffix}", sound=True, longer=3.0))
    assert got.duration == pytest.approx(10.0, abs=0.05) and not got.fault
    assert numbers(got) == got.indices


def test_a_header_that_says_less_than_there_is_counts_for_nothing(tmp_path: Path) -> None:
    """As of a recorder that wrote its lengths before the last pictures came."""
    path = film(tmp_path / "a.mp4")
    content = bytearray(path.read_bytes())
    for box, place in ((b"mvhd", 20), (b"mdhd", 20), (b"tkhd", 24)):  # an edit list would be a cut
        at = content.index(box) + place
        content[at : at + 4] = (int.from_bytes(content[at : at + 4], "big") // 2).to_bytes(4, "big")
    path.write_bytes(content)
    with av.open(str(path)) as container:
        assert container.duration == pytest.approx(5e6, rel=0.05)
    got = sample(path)
    assert got.duration == pytest.approx(10.0, abs=0.05) and not got.fault
    assert got.timestamps[-1] > 9 and probe_video(path) == pytest.approx(10.0, abs=0.05)


@pytest.mark.parametrize("space", ["ITU601", "ITU709", "BT2020"])
def test_colours_are_those_of_the_space_that_the_file_names(tmp_path: Path, space: str) -> None:
    path, colour = tmp_path / "a.mkv", (200, 90, 30)
    codes = {"ITU601": 6, "ITU709": 1, "BT2020": 9}  # of ISO/IEC 23091-2
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=RATE, options={"qp": "0", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv444p"
        stream.codec_context.colorspace = codes[space]
        for index in range(COUNT):
            image = av.VideoFrame.from_ndarray(np.full((HEIGHT, WIDTH, 3), colour, np.uint8), format="rgb24")
            frame = image.reformat(format="yuv444p", dst_colorspace=space)
            frame.pts, frame.time_base = index, Fraction(1, RATE)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    assert np.abs(sample(path).frames[0].astype(int) - colour).max() <= 2


@pytest.mark.parametrize(("aspect", "size"), [((4, 3), (64, 128)), ((3, 4), (85, 96)), ((1, 1), (64, 96))])
def test_pixels_that_are_not_square_are_stretched(
    tmp_path: Path, aspect: tuple[int, int], size: tuple[int, int]
) -> None:
    path = film(tmp_path / "a.mp4", aspect=Fraction(*aspect))
    got = sample(path)
    assert got.frames.shape[1:3] == size
    assert numbers(got) == [*got.indices]
    write_excerpt(path, tmp_path / "part.mp4", 1.0, 2.0)
    assert sample(tmp_path / "part.mp4").frames.shape[1:3] == (size[0] // 2 * 2, size[1])


def test_the_default_track_is_taken_not_the_first(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as output:
        preview, main = (output.add_stream("libx264", rate=RATE) for _ in range(2))
        for stream, side in ((preview, 32), (main, WIDTH)):
            stream.width, stream.height, stream.pix_fmt = side, HEIGHT if stream is main else 32, "yuv420p"
        preview.disposition, main.disposition = Disposition(0), Disposition.default
        for index in range(COUNT):
            for stream in (preview, main):
                if stream is main or not index:
                    image = picture(index) if stream is main else np.zeros((32, 32, 3), np.uint8)
                    frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p")
                    frame.pts, frame.time_base = index, Fraction(1, RATE)
                    output.mux(stream.encode(frame))
        for stream in (preview, main):
            output.mux(stream.encode())
    got = sample(path)
    assert got.frames.shape[1:3] == (HEIGHT, WIDTH) and len(got.indices) == 10
    assert numbers(got) == got.indices


def joined(path: Path) -> None:
    """Two recordings in one file: the clock of the second begins again, as recorders of browsers leave it."""
    recordings = [film(path.with_name(f"{name}.ts")) for name in "12"]
    path.write_bytes(b"".join(recording.read_bytes() for recording in recordings))


def test_a_clock_that_goes_back_is_an_error_also_between_samples(tmp_path: Path) -> None:
    joined(tmp_path / "a.ts")
    with pytest.raises(VideoError, match=r"its clock goes back after \d+\.\d s; encode it again"):
        probe_video(tmp_path / "a.ts")
    for most in (2, 3, 64):
        with pytest.raises(VideoError, match=r"lies .* s before an earlier one; encode it again"):
            sample(tmp_path / "a.ts", max_frames=most)


def program_stream(path: Path) -> Path:
    with av.open(str(path), "w", format="mpeg") as output:
        draw(output, output.add_stream("mpeg2video", rate=25), range(100), 25)
    return path


def cut(path: Path, share: float) -> Path:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share) // 4 * 4 + 3])
    return path


def test_pictures_that_are_decoded_before_0_are_no_clock_that_goes_back(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mp4"), "w", options={"movflags": "faststart"}) as output:
        draw(output, output.add_stream("libx264", rate=RATE, options={"bf": "2"}))
    with av.open(str(tmp_path / "a.mp4")) as content:
        assert next(content.demux(video=0)).dts < 0
    container, stream = open_video(tmp_path / "a.mp4")
    with container:
        assert read_packets(tmp_path / "a.mp4", container, stream).fault == ""


def longer_packets(path: Path) -> Path:
    """Add 16 bytes to each packet of a transport stream, as some broadcasts have them."""
    content = path.read_bytes()
    path.write_bytes(b"".join(content[at : at + 188] + bytes(16) for at in range(0, len(content), 188)))
    return path


def gif(path: Path) -> Path:
    first, *others = (Image.fromarray(picture(index)) for index in range(COUNT))
    first.save(path, save_all=True, append_images=others, duration=1000 // RATE)
    return path


CUT: dict[str, Callable[[Path], Path]] = {
    "mp4": lambda folder: cut(film(folder / "a.mp4", movflags="faststart"), 0.6),
    "mov with sound": lambda folder: cut(film(folder / "a.mov", sound=True, movflags="faststart"), 0.85),
    "mp4 in fragments": lambda folder: cut(film(folder / "a.mp4", movflags="frag_keyframe+empty_moov"), 0.6),
    "mkv": lambda folder: cut(film(folder / "a.mkv"), 0.6),
    "webm": lambda folder: cut(film(folder / "a.webm", "libvpx"), 0.6),
    "avi": lambda folder: cut(film(folder / "a.avi", "mpeg4"), 0.75),
    "avi that FFmpeg calls shorter": lambda folder: cut(film(folder / "a.avi", "ffv1"), 0.6),
    "live webm": lambda folder: cut(film(folder / "a.webm", "libvpx", live="1"), 0.6),
    "flv": lambda folder: cut(film(folder / "a.flv"), 0.6),
    "flv that states no length": lambda folder: cut(film(folder / "a.flv", flvflags="no_duration_filesize"), 0.6),
    "gif": lambda folder: cut(gif(folder / "a.gif"), 0.6),
    "ts": lambda folder: cut(film(folder / "a.ts"), 0.6),
    "m2ts": lambda folder: cut(film(folder / "a.m2ts"), 0.6),
    "ts of a broadcast": lambda folder: cut(longer_packets(film(folder / "a.ts")), 0.6),
    "mpg": lambda folder: cut(program_stream(folder / "a.mpg"), 0.6),
    "ogv": lambda folder: cut(film(folder / "a.ogv", "libvpx"), 0.6),
    "wmv": lambda folder: cut(film(folder / "a.wmv", "wmv2"), 0.4),
}


@pytest.mark.parametrize("kind", CUT)
def test_a_file_that_was_cut_is_named_and_kept_only_if_that_is_asked(tmp_path: Path, kind: str) -> None:
    path = CUT[kind](tmp_path)
    with pytest.raises(VideoError, match=r"container says \d+\.\d s|middle of a fragment or packet"):
        probe_video(path)
    with pytest.raises(VideoError, match=r"container says \d+\.\d s|middle of a fragment or packet"):
        make_clip(tmp_path / "clips", "a", path, DataConfig())
    row = make_clip(tmp_path / "clips", "a", path, DataConfig(other_length="keep"))
    assert row["source_duration_sec"] < 8 and "cut or damaged" in row["source_fault"]


def test_pictures_that_do_not_decode_in_the_middle_are_named(tmp_path: Path) -> None:
    film(tmp_path / "whole.mkv")
    with av.open(str(tmp_path / "whole.mkv")) as old, av.open(str(tmp_path / "a.mkv"), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for place, packet in enumerate(old.demux(video=0)):
            if packet.dts is None:
                continue
            if 8 <= place < 32:
                broken = av.Packet(b"\xff" * packet.size)
                broken.pts, broken.dts, broken.time_base = packet.pts, packet.dts, packet.time_base
                packet = broken
            packet.stream = stream
            new.mux(packet)
    assert "do not decode; fetch it again" in sample(tmp_path / "a.mkv").fault


def test_pictures_that_stay_on_by_empty_packets_stay_on(tmp_path: Path) -> None:
    film(tmp_path / "whole.nut", "ffv1")  # Theora has such packets, and no encoder here
    path = tmp_path / "a.nut"
    with av.open(str(tmp_path / "whole.nut")) as old, av.open(str(path), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for place, packet in enumerate(packet for packet in old.demux(video=0) if packet.dts is not None):
            if 12 <= place < 36:
                held = av.Packet(b"")
                held.pts, held.dts, held.time_base = packet.pts, packet.dts, packet.time_base
                held.duration, packet = packet.duration, held
            packet.stream = stream
            new.mux(packet)
    got = sample(path)
    assert got.fault == "" and probe_video(path) == pytest.approx(got.duration) == COUNT / RATE
    assert numbers(got) == [0, 4, 8, 11, 11, 11, 11, 11, 11, 39]


def test_pictures_of_an_avi_come_in_the_order_in_which_they_are_shown(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.avi"), "w") as output:
        draw(output, output.add_stream("libx264", rate=RATE, options={"bf": "2", "b-adapt": "0"}))
    got = sample(tmp_path / "a.avi")
    assert numbers(got) == [*got.indices] and got.fault == ""
    assert probe_video(tmp_path / "a.avi") == pytest.approx(got.duration, abs=0.5)


@pytest.mark.parametrize("form", ["png", "jpeg", "webp"])
def test_a_picture_under_the_name_of_a_film_is_none(tmp_path: Path, form: str) -> None:
    Image.fromarray(picture(0)).save(tmp_path / "a.mp4", form)
    with pytest.raises(VideoError, match="is a picture, not a video"):
        sample(tmp_path / "a.mp4")
    with pytest.raises(VideoError, match="is a picture, not a video"):
        probe_video(tmp_path / "a.mp4")


WHOLE = ["live.webm", "mp4", "mkv", "avi", "webm", "flv", "ts", "m2ts", "mpg", "3gp", "wmv", "mov", "mts", "ogv"]


@pytest.mark.parametrize("suffix", WHOLE)
def test_whole_files_of_every_container_have_no_fault(tmp_path: Path, suffix: str) -> None:
    live = {"live": "1"} if suffix == "live.webm" else {}
    vp8 = dict.fromkeys(("webm", "live.webm", "ogv"), "libvpx")
    codec = vp8 | {"mpg": "mpeg2video", "wmv": "wmv2", "avi": "mpeg4"}
    path = tmp_path / f"a.{suffix}"
    if suffix == "mpg":
        program_stream(path)
    else:
        film(path, codec.get(suffix, "libx264"), sound=suffix in ("mp4", "mkv", "mov"), **live)
    got = sample(path)
    assert got.fault == ""
    assert probe_video(path) == pytest.approx(got.duration, abs=0.3)
    if suffix != "mpg":
        assert numbers(got) == [*got.indices]
        assert got.timestamps == pytest.approx(
            [index / RATE for index in got.indices] + [got.indices[-1] / RATE] * got.even_pad_applied, abs=0.05
        )


@pytest.mark.parametrize("tag", [b"caf\xe9 \xff", b"\x83e\x83X\x83g", b"\x8e\x92\x8c"])
def test_a_title_in_another_encoding_is_no_fault(tmp_path: Path, tag: bytes) -> None:
    path = tmp_path / "a.avi"
    with av.open(str(path), "w") as output:
        output.metadata["title"] = "x" * len(tag)
        draw(output, output.add_stream("mpeg4", rate=RATE))
    path.write_bytes(path.read_bytes().replace(b"x" * len(tag), tag))
    assert probe_video(path) == pytest.approx(10.0)
    assert numbers(sample(path)) == sample(path).indices
