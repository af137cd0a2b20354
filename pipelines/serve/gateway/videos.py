"""The routes of the videos: adding, following and deleting them, and what can be seen of one.

They belong to the gateway's application, whose replica they find through Serve: keys and limits are those of a search.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse
from pydantic import ValidationError

from pipelines.serve.gateway import replica
from pipelines.serve.gateway.faults import ADMITTED, WITH_BODY, errors
from pipelines.serve.gateway.schema import CorpusName, Seconds, Video, VideoId, VideoPage, VideoSource
from pipelines.serve.gateway.stream import ApiError
from vsr1.retrieval.request import RetrievalError
from vsr1.video.check import MEDIA_TYPES
from vsr1.video.clips import ClipError

router = APIRouter(prefix="/v1/videos", tags=["videos"])
OF_VIDEO = ("unknown_video", "unknown_corpus", "invalid_request", "retrieval_failed", *ADMITTED)
OF_FILE = ("not_a_video", "too_many_pixels", "too_many_frames", "too_long", "decode_limit", "too_large", "too_slow")
OF_SOURCE = ("paths_are_off", "path_refused", "urls_are_off", "url_refused", "fetch_failed")
OF_NAME = ("invalid_video_id", "duplicate_video", "video_exists", "unknown_corpus", "busy")


async def _gateway(request: Request) -> AsyncIterator[Any]:
    """The replica that answers, once the request's key has let it in."""
    gateway = replica.gateway()
    with gateway.admitted(request):
        yield gateway


Served = Annotated[Any, Depends(_gateway)]
Start = Annotated[float, Query(ge=0, allow_inf_nan=False, examples=[1.0])]
VIDEOS: dict[str, Any] = {kind: {} for kind in MEDIA_TYPES.values()}
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_LOCATION = {"description": "where to see how far the video is", "schema": {"type": "string"}}
_BODY = {
    "required": True,
    "description": "the video file itself, or where it is",
    "content": {
        "application/octet-stream": _BINARY,
        "video/*": _BINARY,
        "application/json": {"schema": VideoSource.model_json_schema()},  # its example is the model's
    },
}


@router.post(
    "",
    status_code=202,
    responses={202: {"headers": {"Location": _LOCATION}}, **errors(*OF_FILE, *OF_SOURCE, *OF_NAME, *WITH_BODY)},
    openapi_extra={"requestBody": _BODY},
)
async def add_video(
    request: Request,
    response: Response,
    gateway: Served,
    corpus: CorpusName = None,
    video_id: Annotated[
        str | None,
        Query(description="1 to 200 bytes of printable UTF-8 without slashes; left out: made of the file's hash"),
    ] = None,
) -> Video:
    """Add a video: send the file as the body, or JSON with a `path` on the server or a public `url`.

    The file is received and checked before the answer; then `Location` tells how far it is.
    """
    name = gateway.corpus(corpus)
    pieces = await _pieces(request, gateway.intake)
    added = await _answer(gateway.intake.add(name, video_id, pieces))
    response.headers["Location"] = f"/v1/videos/{quote(added, safe='')}?corpus={quote(name, safe='')}"
    return Video(video_id=added, status="queued", progress=0)


@router.get("", responses=errors("unknown_corpus", "invalid_request", *ADMITTED))
async def videos(
    gateway: Served,
    corpus: CorpusName = None,
    after: Annotated[str, Query(max_length=500, description="an id, as in `next`; empty: from the first")] = "",
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> VideoPage:
    """The videos of a corpus by id, a page at a time: those to search, those on their way, and those that failed."""
    found: VideoPage = await _answer(gateway.library.videos.remote(gateway.corpus(corpus), after, limit))
    return found


@router.get("/{video_id}", responses=errors(*OF_VIDEO))
async def video(video_id: VideoId, gateway: Served, corpus: CorpusName = None) -> Video:
    """How far a video is, and how long one that is ready."""
    found: Video = await _answer(gateway.library.video.remote(gateway.corpus(corpus), video_id))
    return found


@router.delete("/{video_id}", status_code=204, responses=errors("video_on_its_way", "too_few_videos", *OF_VIDEO))
async def delete_video(video_id: VideoId, gateway: Served, corpus: CorpusName = None) -> None:
    """Take a video out of the searches that begin from now on.

    An added video's files are deleted; a video of the data build is left out, and its files stay.
    """
    await _answer(gateway.library.delete.remote(gateway.corpus(corpus), video_id))


@router.get(
    "/{video_id}/thumbnail",
    response_class=Response,
    responses={200: {"content": {"image/jpeg": {}}}, **errors(*OF_VIDEO)},
)
async def thumbnail(video_id: VideoId, gateway: Served, t: Seconds = 0.0, corpus: CorpusName = None) -> Response:
    """The frame nearest to second `t`, as JPEG."""
    picture = await _answer(gateway.library.thumbnail.remote(gateway.corpus(corpus), video_id, t))
    return Response(picture, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})


@router.get(
    "/{video_id}/clip",
    response_class=Response,
    responses={
        200: {"content": {"video/mp4": {}}},
        **errors("invalid_range", "decode_limit", "no_source", *OF_VIDEO),
    },
)
async def clip(video_id: VideoId, start: Start, end: Seconds, gateway: Served, corpus: CorpusName = None) -> Response:
    """The pictures from `start` to `end`, in seconds, as MP4 (H.264, no sound)."""
    cut = await _answer(gateway.library.clip.remote(gateway.corpus(corpus), video_id, start, end))
    return Response(cut, media_type="video/mp4", headers={"Cache-Control": "private, max-age=3600"})


@router.get(
    "/{video_id}/file",
    response_class=FileResponse,
    responses={200: {"content": VIDEOS}, 206: {"content": VIDEOS}, 416: {}, **errors("no_source", *OF_VIDEO)},
)
async def file(video_id: VideoId, gateway: Served, corpus: CorpusName = None) -> FileResponse:
    """The source file, as a player wants it: with ranges of bytes (206, 416)."""
    path, media_type = await _answer(gateway.library.source.remote(gateway.corpus(corpus), video_id))
    return FileResponse(path, media_type=media_type)


async def _pieces(request: Request, intake: Any) -> AsyncGenerator[bytes, None]:
    """The file that a request brings or names.

    A page of another site can send neither kind of body without this server's leave, so forms are not taken.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/octet-stream" or kind.startswith("video/"):
        body: AsyncGenerator[bytes, None] = intake.body(request.headers.get("content-length"), request.stream())
        return body
    if kind != "application/json":
        raise ApiError(
            415, "wrong_content_type", "send the file as application/octet-stream or video/*, or JSON with path or url"
        )
    source = await _json(request)
    path, url = source.path, source.url
    named: AsyncGenerator[bytes, None] = intake.file(path) if path is not None else intake.url(url)
    return named


async def _json(request: Request) -> VideoSource:
    try:
        return VideoSource.model_validate_json(await request.body())
    except ValidationError as error:
        raise RequestValidationError([{**item, "loc": ("body", *item["loc"])} for item in error.errors()]) from error


async def _answer(asked: Any) -> Any:
    """What another deployment answers; its refusals come as they were raised, without Ray's wrapping."""
    try:
        return await asked
    except ApiError as error:
        raise getattr(error, "cause", error) from None
    except ClipError as error:  # its message has folders of this machine
        raise ApiError(404, "unknown_video", "the corpus has no such video that can be read") from error
    except RetrievalError as error:
        raise ApiError(503, "retrieval_failed", str(getattr(error, "cause", error))) from error
