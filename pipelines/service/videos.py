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
from ray import serve

from pipelines.service.schema import ErrorAnswer, Video, VideoSource
from pipelines.service.stream import ApiError
from vsr1.formats.clips import ClipError
from vsr1.retrieval.request import RetrievalError

LONGEST_JSON = 1 << 16  # bytes

router = APIRouter(prefix="/v1/videos", tags=["videos"])


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": ErrorAnswer} for status in (401, 404, 422, 429, 503, *statuses)}


async def _gateway(request: Request) -> AsyncIterator[Any]:
    """The replica that answers, once the request's key has let it in."""
    gateway = serve.get_replica_context().servable_object
    with gateway.admitted(request):
        yield gateway


Served = Annotated[Any, Depends(_gateway)]
CorpusName = Annotated[str | None, Query(description="may be left out where there is only one")]
Seconds = Annotated[float, Query(ge=0, allow_inf_nan=False, description="seconds after the first frame")]
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_LOCATION = {"description": "where to see how far the video is", "schema": {"type": "string"}}
_BODY = {
    "required": True,
    "description": "the video file itself, or where it is",
    "content": {
        "application/octet-stream": _BINARY,
        "video/*": _BINARY,
        "application/json": {"schema": VideoSource.model_json_schema()},
    },
}


@router.post(
    "",
    status_code=202,
    responses={202: {"headers": {"Location": _LOCATION}}, **_errors(403, 408, 409, 413, 415)},
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

    The file is received and checked before the answer; then `Location` tells how far it is. 409: `duplicate_video` for
    a file that the corpus has, `video_exists` for an id that another file has. 422: `not_a_video`, `too_many_pixels`,
    `too_many_frames`, `too_long`, `decode_limit`, `invalid_video_id`, `path_refused`, `url_refused`, `fetch_failed`.
    403: `paths_are_off`, `urls_are_off`. 413: `too_large`. 429: `busy`, with Retry-After.
    """
    name = gateway.corpus(corpus)
    pieces = await _pieces(request, gateway.intake)
    added = await _answer(gateway.intake.add(name, video_id, pieces))
    response.headers["Location"] = f"/v1/videos/{quote(added, safe='')}?corpus={quote(name, safe='')}"
    return Video(video_id=added, status="queued", progress=0)


@router.get("/{video_id}", responses=_errors())
async def video(video_id: str, gateway: Served, corpus: CorpusName = None) -> Video:
    """How far a video is, and how long one that is ready."""
    found: Video = await _answer(gateway.library.video.remote(gateway.corpus(corpus), video_id))
    return found


@router.delete("/{video_id}", status_code=204, responses=_errors(409))
async def delete_video(video_id: str, gateway: Served, corpus: CorpusName = None) -> None:
    """Take a video out of the searches that begin from now on.

    An added video's files are deleted; a video of the data build is left out, and its files stay. 409:
    `video_on_its_way`, `too_few_videos`.
    """
    await _answer(gateway.library.delete.remote(gateway.corpus(corpus), video_id))


@router.get(
    "/{video_id}/thumbnail", response_class=Response, responses={**_errors(), 200: {"content": {"image/jpeg": {}}}}
)
async def thumbnail(video_id: str, gateway: Served, t: Seconds = 0.0, corpus: CorpusName = None) -> Response:
    """The frame nearest to second `t`, as JPEG."""
    picture = await _answer(gateway.library.thumbnail.remote(gateway.corpus(corpus), video_id, t))
    return Response(picture, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})


@router.get("/{video_id}/clip", response_class=Response, responses={**_errors(), 200: {"content": {"video/mp4": {}}}})
async def clip(video_id: str, start: Seconds, end: Seconds, gateway: Served, corpus: CorpusName = None) -> Response:
    """The pictures from `start` to `end`, in seconds, as MP4 (H.264, no sound).

    422: `invalid_range`, `decode_limit`. 404: `no_source`.
    """
    cut = await _answer(gateway.library.clip.remote(gateway.corpus(corpus), video_id, start, end))
    return Response(cut, media_type="video/mp4", headers={"Cache-Control": "private, max-age=3600"})


@router.get(
    "/{video_id}/file",
    response_class=FileResponse,
    responses={**_errors(416), 200: {"content": {"video/*": {}}}, 206: {"content": {"video/*": {}}}},
)
async def file(video_id: str, gateway: Served, corpus: CorpusName = None) -> FileResponse:
    """The source file, as a player wants it: with ranges of bytes (206, 416). 404: `no_source`."""
    path, media_type = await _answer(gateway.library.source.remote(gateway.corpus(corpus), video_id))
    return FileResponse(path, media_type=media_type, headers={"X-Content-Type-Options": "nosniff"})


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
            415, "unsupported_type", "send the file as application/octet-stream or video/*, or JSON with path or url"
        )
    source = await _json(request)
    path, url = source.path, source.url
    named: AsyncGenerator[bytes, None] = intake.file(path) if path is not None else intake.url(url)
    return named


async def _json(request: Request) -> VideoSource:
    text = bytearray()
    async for piece in request.stream():
        text += piece
        if len(text) > LONGEST_JSON:
            raise ApiError(413, "too_large", f"JSON of more than {LONGEST_JSON} bytes names no video")
    try:
        return VideoSource.model_validate_json(bytes(text))
    except ValidationError as error:
        raise RequestValidationError([{**item, "loc": ("body", *item["loc"])} for item in error.errors()]) from error


async def _answer(asked: Any) -> Any:
    """What another deployment answers; its refusals come as they were raised, without Ray's wrapping."""
    try:
        return await asked
    except ApiError as error:
        raise getattr(error, "cause", error) from None
    except ClipError as error:
        raise ApiError(404, "unknown_video", str(getattr(error, "cause", error))) from error
    except RetrievalError as error:
        raise ApiError(503, "retrieval_failed", str(getattr(error, "cause", error))) from error
