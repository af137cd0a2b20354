"""A video that does not come in: whose fault it was, and what goes on."""

import asyncio
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from pipelines.serve.gateway.faults import ApiError
from pipelines.serve.library import sandbox
from pipelines.serve.library.ingest import Ingestion
from vsr1.retrieval.added import SOURCE, LibraryClips
from vsr1.retrieval.request import RetrievalError
from vsr1.settings.data import DataConfig
from vsr1.settings.serving import CorpusConfig, ServeConfig, UploadConfig
from vsr1.video.clips import ClipFolder, write_meta


class Answering:
    """A handle's method that answers at once, or raises."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer

    async def remote(self, *args: Any) -> Any:
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer


class StandIn:
    """The actors of a corpus, whose embedder gives this."""

    def __init__(self, embedded: Any) -> None:
        self.retrieval, self.stores = self, self
        self.embed_clip, self.refresh = Answering(embedded), Answering("version")

    def actors(self) -> list[Any]:
        return []


def film(path: Path) -> None:
    path.parent.mkdir(parents=True)
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=4, options={"preset": "ultrafast"})
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for shade in range(8):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((64, 64, 3), shade, np.uint8))))
        container.mux(stream.encode())


def ingested(folder: Path, embedded: Any, upload: UploadConfig) -> tuple[Ingestion, str | None]:
    """Bring in one video; the ingestion afterwards, and the code of its fault."""

    async def play() -> tuple[Ingestion, str | None]:
        corpus = CorpusConfig(root=folder)
        write_meta(folder, [])
        ingestion = Ingestion(
            ServeConfig(upload=upload), corpus, DataConfig(), LibraryClips(ClipFolder(folder), _added(corpus)),
            StandIn(embedded),  # type: ignore[arg-type]
        )  # fmt: skip
        received = ingestion.added.receiving / "one"
        film(received / SOURCE)
        assert await ingestion.accept("film", received, "0" * 64) == "film"
        while ingestion.stages:
            await asyncio.sleep(0.02)
        fault = ingestion.fault("film")
        await asyncio.sleep(0)
        return ingestion, fault and fault.code

    return asyncio.run(play())


def _added(corpus: CorpusConfig) -> Any:
    from vsr1.retrieval.added import AddedFolder

    return AddedFolder.of(corpus)


def test_a_webm_is_told_from_other_matroska(tmp_path: Path) -> None:
    kinds = {}
    for form, codec in (("webm", "libvpx"), ("matroska", "libvpx"), ("mp4", "libx264")):
        path = tmp_path / form
        with av.open(str(path), "w", format=form) as container:
            stream = container.add_stream(codec, rate=4)
            stream.width = stream.height = 64
            stream.pix_fmt = "yuv420p"
            for shade in range(4):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((64, 64, 3), shade, np.uint8))))
            container.mux(stream.encode())
        kinds[form] = asyncio.run(sandbox.check(path, UploadConfig()))
    assert kinds == {"webm": "video/webm", "matroska": "video/x-matroska", "mp4": "video/mp4"}


def test_a_full_disk_is_told_as_one(tmp_path: Path) -> None:
    film(tmp_path / "a" / "film")
    with pytest.raises(ApiError) as refused:
        asyncio.run(sandbox.cut(tmp_path / "a" / "film", Path("/dev/full"), (0.0, 1.0), UploadConfig()))
    assert refused.value.code == "disk_full"


def test_a_video_comes_in(tmp_path: Path) -> None:
    vector = np.ones(4, np.float32)
    ingestion, code = ingested(tmp_path, (vector, "embedder"), UploadConfig())
    assert code is None and ingestion.added.read("film").embedder == "embedder"


@pytest.mark.parametrize("error", [RetrievalError("the embedding has no direction"), OSError("no space left")])
def test_what_the_index_or_the_disk_says_is_the_video_s_fault(tmp_path: Path, error: Exception) -> None:
    ingestion, code = ingested(tmp_path, error, UploadConfig())
    assert code == "ingestion_failed"
    assert str(error) in ingestion.added.read("film", "incoming").fault.message  # type: ignore[union-attr]


@pytest.mark.parametrize("error", [TypeError("a secret of ours"), ValueError("a secret of ours"), RuntimeError("x")])
def test_a_fault_of_ours_is_not_told_as_the_video_s(tmp_path: Path, error: Exception) -> None:
    ingestion, code = ingested(tmp_path, error, UploadConfig())
    assert code == "internal_error"
    assert "secret" not in ingestion.added.read("film", "incoming").fault.message  # type: ignore[union-attr]
    with pytest.raises(type(error)):
        ingestion.check_health()
