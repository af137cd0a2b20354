"""Videos that come and go on a real Ray Serve: added, searched, seen, deleted, kept over a restart, and refused."""

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from ray import serve

from pipelines.serve.deploy import start_agent
from vsr1.retrieval.added import SOURCE, AddedVideo
from vsr1.video.clips import ClipFolder

from .scripted import application
from .served import BINARY, NEW, VIDEOS, WHOLE, Served, refused


def film(path: Path, *, side: int = 64, width: int = 0, frames: int = 8, rate: int = 4, seed: int = 0) -> bytes:
    """A video of one flat colour a frame, which compresses to next to nothing; square unless it has a `width`."""
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate, options={"preset": "ultrafast"})
        stream.width, stream.height = width or side, side
        stream.pix_fmt = "yuv420p"
        for number in range(frames):
            shade = (17 * seed + number) % 256
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((side, width or side, 3), shade, np.uint8))))
        container.mux(stream.encode())
    return path.read_bytes()


def test_a_shape_that_the_embedder_refuses_fails_alone(served: Served, tmp_path: Path) -> None:
    assert served.add(film(tmp_path / "film", side=8, width=1640), video_id="ribbon").status_code == 202
    failed = served.wait("ribbon")
    assert (failed["status"], failed["error"]["code"]) == ("failed", "ingestion_failed")
    assert "'ribbon' cannot be embedded" in failed["error"]["message"] and "aspect ratio" in failed["error"]["message"]
    assert served.ask("DELETE", "/v1/videos/ribbon").status_code == 204


def test_a_video_comes_in_is_found_and_seen_and_goes(served: Served) -> None:
    before = served.ask("GET", "/v1/corpora").json()[0]
    assert NEW not in served.ranking(NEW)
    content = served.films[NEW].read_bytes()
    accepted = served.add(content, video_id=NEW, corpus="toy")
    assert (accepted.status_code, accepted.json()["status"]) == (202, "queued")
    assert served.ask("GET", accepted.headers["location"]).json()["video_id"] == NEW
    ready = served.wait(NEW)
    assert (ready["status"], ready["progress"]) == ("ready", 1)
    assert ready["duration"] == ClipFolder(served.added.video(NEW)).row(NEW)["source_duration_sec"] and ready["version"]
    assert ready["first_picture_sec"] == 0.0
    after = served.ask("GET", "/v1/corpora").json()[0]
    assert (after["videos"], before["videos"]) == (VIDEOS, VIDEOS - 1)
    assert after["index_version"] != before["index_version"]
    assert served.ranking(NEW)[0] == NEW

    picture = served.ask("GET", f"/v1/videos/{NEW}/thumbnail", params={"t": 3})
    assert Image.open(io.BytesIO(picture.content)).size == (64, 64)
    part = served.ask("GET", f"/v1/videos/{NEW}/clip", params={"start": 2.1, "end": 5.6})
    assert (part.status_code, part.headers["content-type"]) == (200, "video/mp4")
    with av.open(io.BytesIO(part.content)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, float(stream.duration * stream.time_base)) == ("h264", pytest.approx(3.5))
    for span in ({"start": 5, "end": 5}, {"start": 1, "end": 1000}, {"start": 0, "end": 25}):
        answer = served.ask("GET", f"/v1/videos/{NEW}/clip", params=span)
        assert refused(answer) == (422, "invalid_range")
        assert f"{ready['duration']:.3f} s" in answer.json()["error"]["message"]
    assert refused(served.ask("GET", f"/v1/videos/{NEW}/clip", params={"start": "nan", "end": 2}))[0] == 422

    assert served.ask("DELETE", f"/v1/videos/{NEW}").status_code == 204
    assert NEW not in served.ranking(NEW)
    for path in ("", "/thumbnail", "/clip?start=0&end=1", "/file"):
        assert refused(served.ask("GET", f"/v1/videos/{NEW}{path}")) == (404, "unknown_video")
    assert refused(served.ask("DELETE", f"/v1/videos/{NEW}")) == (404, "unknown_video")
    assert served.ask("GET", "/v1/corpora").json()[0]["index_version"] == before["index_version"]


def test_the_source_is_played_by_ranges(served: Served) -> None:
    """Of a video of the data build, whose file the build wrote down."""
    content, path = served.films["test_0001"].read_bytes(), "/v1/videos/test_0001/file"
    whole = served.ask("GET", path)
    assert (whole.status_code, whole.content, whole.headers["content-type"]) == (200, content, "video/mp4")
    assert whole.headers["accept-ranges"] == "bytes"
    part = served.ask("GET", path, headers={"Range": "bytes=10-29"})
    assert (part.status_code, part.content) == (206, content[10:30])
    assert part.headers["content-range"] == f"bytes 10-29/{len(content)}"
    assert served.ask("GET", path, headers={"Range": f"bytes={len(content)}-"}).status_code == 416


def test_a_length_is_that_of_the_file(served: Served, tmp_path: Path) -> None:
    """Not one that is made up from the few frames that are kept of a long video."""
    assert served.add(film(tmp_path / "film", frames=59, rate=1, seed=7), video_id="long").status_code == 202
    assert served.wait("long")["duration"] == pytest.approx(59)
    beyond = served.ask("GET", "/v1/videos/long/clip", params={"start": 58, "end": 59.5})
    assert refused(beyond) == (422, "invalid_range")
    before = served.ask("GET", "/v1/videos/long").json()["version"]
    assert served.ask("DELETE", "/v1/videos/long").status_code == 204
    assert served.add(film(tmp_path / "film", frames=8, seed=8), video_id="long").status_code == 202
    after = served.wait("long")["version"]
    for part in ("thumbnail?t=1", "file?x=1", "clip?start=0&end=1"):
        assert refused(served.ask("GET", f"/v1/videos/long/{part}&v={before}")) == (404, "unknown_video")
        assert "immutable" in served.ask("GET", f"/v1/videos/long/{part}&v={after}").headers["cache-control"]
    assert served.ask("DELETE", "/v1/videos/long").status_code == 204


def test_a_source_that_is_gone_is_named(served: Served) -> None:
    place = served.data.raw_videos("test") / "test_0002.mp4"
    hidden = place.rename(place.with_suffix(".hidden"))
    for path in ("/file", "/clip?start=0&end=1"):
        answer = served.ask("GET", f"/v1/videos/test_0002{path}")
        assert refused(answer) == (404, "no_source")
        message = answer.json()["error"]["message"]
        assert "'test_0002'" in message and str(place.parent) not in message, "folders are nobody's business"
    hidden.rename(place)


def test_clip_and_vector_are_those_of_the_data_build(served: Served) -> None:
    assert served.add(served.films[NEW].read_bytes(), video_id=NEW).status_code == 202
    assert served.wait(NEW)["status"] == "ready"
    built = ClipFolder(served.data.clips(WHOLE)).read(NEW)
    added = ClipFolder(served.added.video(NEW)).read(NEW)
    assert added.content_hash == built.content_hash
    row = sorted(served.films).index(NEW)
    vector = np.load(served.added.video(NEW) / "vector.npy")
    np.testing.assert_allclose(vector, np.load(served.data.video_embeddings(WHOLE))[row], atol=1e-5)
    assert served.ask("DELETE", f"/v1/videos/{NEW}").status_code == 204


def test_searches_go_on_while_videos_come_and_go(served: Served) -> None:
    body = {"query": served.queries["test_0005"], "max_turns": 3}
    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(served.ask, "POST", "/v1/search", json=body) for _ in range(12)]
        for _ in range(3):
            assert served.add(served.films[NEW].read_bytes(), video_id=NEW).status_code == 202
            assert served.wait(NEW)["status"] == "ready"
            assert served.ask("DELETE", f"/v1/videos/{NEW}").status_code == 204
        assert {search.result().status_code for search in running} == {200}


def test_a_file_and_an_id_come_in_once(served: Served, tmp_path: Path) -> None:
    content = film(tmp_path / "film", seed=1)
    name = "käse 日本 #1?"
    accepted = served.add(content, video_id=name)
    assert accepted.status_code == 202
    again = served.add(content, video_id="another")
    assert refused(again) == (409, "duplicate_video") and repr(name) in again.json()["error"]["message"]
    assert refused(served.add(film(tmp_path / "film", seed=2), video_id=name)) == (409, "video_exists")
    assert refused(served.add(content + b"more", video_id="test_0001")) == (409, "video_exists")
    built = served.add(served.films["test_0001"].read_bytes(), video_id="another")
    assert refused(built) == (409, "duplicate_video") and "'test_0001'" in built.json()["error"]["message"]
    path = accepted.headers["location"].partition("?")[0]
    assert served.wait(path.removeprefix("/v1/videos/"))["video_id"] == name
    assert served.ask("DELETE", path).status_code == 204
    unnamed = served.add(content)
    assert unnamed.json()["video_id"].startswith("video-")
    served.wait(unnamed.json()["video_id"])
    assert served.ask("DELETE", unnamed.headers["location"]).status_code == 204


def test_a_queue_that_is_full_says_when_to_come_back(served: Served, tmp_path: Path) -> None:
    contents = [film(tmp_path / "film", seed=10 + number) for number in range(5)]
    with ThreadPoolExecutor(5) as pool:
        answers = list(pool.map(served.add, contents))
    full = [answer for answer in answers if answer.status_code == 429]
    assert full and all(refused(answer) == (429, "busy") and int(answer.headers["retry-after"]) for answer in full)
    taken = [answer.json()["video_id"] for answer in answers if answer.status_code == 202]
    assert taken
    for video_id in taken:
        served.wait(video_id)
        assert served.ask("DELETE", f"/v1/videos/{video_id}").status_code == 204


def test_files_that_are_no_videos_or_too_large_are_refused(served: Served, tmp_path: Path) -> None:
    playlist = b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile:///etc/hostname\n#EXT-X-ENDLIST\n"
    listing = f"ffconcat version 1.0\nfile {served.films['test_0001']}\n".encode()
    cut_off = served.films["test_0001"].read_bytes()[:200]
    for content in (b"", b"GIF89a" + b"text" * 100, playlist, listing, cut_off):
        assert refused(served.add(content, video_id="bad")) == (422, "not_a_video")
    bombs = {
        "too_many_pixels": {"side": 2048, "frames": 2},
        "too_many_frames": {"frames": 900, "rate": 100},
        "too_long": {"frames": 300, "rate": 1},
    }
    for code, shape in bombs.items():
        content = film(tmp_path / "bomb", **shape)
        assert len(content) < 60_000
        assert refused(served.add(content, video_id="bad")) == (422, code)
    assert refused(served.add(bytes(1 << 21), video_id="bad")) == (413, "too_large")

    def endless() -> Iterator[bytes]:
        for _ in range(40):
            yield bytes(1 << 16)

    assert refused(served.ask("POST", "/v1/videos", content=endless(), headers=BINARY)) == (413, "too_large")
    assert refused(served.ask("GET", "/v1/videos/bad")) == (404, "unknown_video")
    assert list(served.added.receiving.iterdir()) == []


@pytest.mark.parametrize("video_id", ["", " x", ".x", "..", "a/b", "a\\b", "a\nb", "a\u202eb", "a\u0301", "x" * 201])
def test_ids_that_cannot_name_a_file_are_refused(served: Served, video_id: str) -> None:
    assert refused(served.add(b"no matter", video_id=video_id)) == (422, "invalid_video_id")


def test_only_bodies_that_other_sites_cannot_send_are_taken(served: Served) -> None:
    for kind in ("text/plain", "multipart/form-data; boundary=x", "application/x-www-form-urlencoded"):
        answer = served.ask("POST", "/v1/videos", content=b"x", headers={"Content-Type": kind})
        assert refused(answer) == (415, "wrong_content_type")
    for body in ({}, {"path": "a", "url": "b"}, {"file": "a"}, {"path": ""}):
        assert refused(served.name(**body)) == (422, "invalid_request")


def test_a_path_is_taken_below_its_root_only(served: Served, tmp_path: Path) -> None:
    root = served.config.serve.upload.path_root
    assert root is not None
    outside = tmp_path / "outside.mp4"
    outside.write_bytes(film(tmp_path / "film", seed=3))
    (root / "sub").mkdir()
    (root / "sub" / "inside.mp4").write_bytes(outside.read_bytes())
    (root / "link.mp4").symlink_to(outside)
    (root / "folder").symlink_to(tmp_path)
    for path in (
        "../outside.mp4",
        str(outside),
        "link.mp4",
        "folder/outside.mp4",
        "sub",
        "nowhere",
        "a\0b",
        "/etc/passwd",
    ):
        assert refused(served.name(path=path)) == (422, "path_refused"), path
    accepted = served.name(path="sub/../sub/inside.mp4")
    assert accepted.status_code == 202
    assert served.wait(accepted.json()["video_id"])["status"] == "ready"
    assert served.ask("DELETE", accepted.headers["location"]).status_code == 204
    assert (root / "sub" / "inside.mp4").is_file()


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/x.mp4", "http://localhost/x.mp4", "http://[::1]/x.mp4", "http://2130706433/x.mp4",
        "http://0x7f.1/x.mp4", "http://169.254.169.254/latest", "http://[::ffff:10.0.0.1]/x", "http://0.0.0.0/x",
        "file:///etc/passwd", "ftp://8.8.8.8/x.mp4", "http://user:word@8.8.8.8/x.mp4", "nonsense",
    ],
)  # fmt: skip
def test_addresses_inside_are_not_asked(served: Served, url: str) -> None:
    assert refused(served.name(url=url)) == (422, "url_refused")


@pytest.mark.chaos  # it stops the service and starts it again
def test_what_was_added_and_deleted_outlives_a_restart(served: Served, tmp_path: Path) -> None:
    """Last: the application starts anew. A video that was on its way when it ended is taken up again."""
    assert served.add(served.films[NEW].read_bytes(), video_id=NEW).status_code == 202
    assert served.wait(NEW)["status"] == "ready"
    assert served.ask("DELETE", "/v1/videos/test_0001").status_code == 204
    assert "test_0001" not in served.ranking("test_0001")
    root = served.data
    assert (root.raw_videos("test") / "test_0001.mp4").is_file() and (root.clips("test") / "test_0001.npy").is_file()
    version = served.ask("GET", "/v1/corpora").json()[0]["index_version"]
    serve.delete("vsr1")
    received = served.added.receiving / "late"
    received.mkdir()
    (received / SOURCE).write_bytes(film(tmp_path / "film", seed=4))
    served.added.accept(received, AddedVideo(video_id="late", sha256="0" * 64, media_type="video/mp4"))
    (served.added.receiving / "half").mkdir()
    start_agent(served.config, "127.0.0.1", int(served.url.rpartition(":")[2]), application)
    assert served.wait("late")["status"] == "ready"
    assert not served.added.receiving.exists()
    assert served.ask("DELETE", "/v1/videos/late").status_code == 204
    assert served.ask("GET", "/v1/corpora").json()[0]["index_version"] == version
    assert served.ranking(NEW)[0] == NEW
    assert "test_0001" not in served.ranking("test_0001")
    assert refused(served.ask("GET", "/v1/videos/test_0001")) == (404, "unknown_video")
    assert served.add(served.films["test_0001"].read_bytes(), video_id="test_0001").status_code == 202
    assert served.wait("test_0001")["status"] == "ready"
    assert served.ranking("test_0001")[0] == "test_0001"
