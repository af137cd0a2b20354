"""The routes of the videos: adding, following and deleting them, and what can be seen of one."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse
from pydantic import ValidationError

from pipelines.serve.gateway.answers import ADMITTED, WITH_BODY, errors, media_type
from pipelines.serve.gateway.faults import ApiError
from pipelines.serve.gateway.gateway import Admitted, Chosen
from pipelines.serve.gateway.intake import Intake
from pipelines.serve.gateway.schema import Seconds, Video, VideoId, VideoPage, VideoSource
from vsr1.video.check import MEDIA_TYPES

router = APIRouter(prefix="/v1/videos", tags=["videos"])
OF_VIDEO = ("unknown_video", "unknown_corpus", "invalid_request", "retrieval_failed", *ADMITTED)
OF_CLIP = ("invalid_range", "decode_limit", "no_source", *OF_VIDEO)
OF_FILE = ("not_a_video", "too_many_pixels", "too_many_frames", "too_long", "decode_limit", "too_large", "too_slow")
OF_SOURCE = ("paths_are_off", "path_refused", "urls_are_off", "url_refused", "fetch_failed")
OF_NAME = ("invalid_video_id", "duplicate_video", "video_exists", "unknown_corpus", "busy")
Start = Annotated[float, Query(ge=0, allow_inf_nan=False, examples=[1.0])]
VIDEOS: dict[str, Any] = {kind: {} for kind in MEDIA_TYPES.values()}
FOR_AN_HOUR = {"Cache-Control": "private, max-age=3600"}
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
    gateway: Admitted,
    corpus: Chosen,
    video_id: Annotated[
        str | None,
        Query(description="1 to 200 bytes of printable UTF-8 without slashes; left out: made of the file's hash"),
    ] = None,
) -> Video:
    """Add a video: send the file as the body, or JSON with a `path` on the server or a public `url`.

    The file is received and checked before the answer; then `Location` tells how far it is.
    """
    pieces = await _pieces(request, gateway.intake)
    name = await gateway.intake.add(corpus, video_id, pieces)
    response.headers["Location"] = f"/v1/videos/{quote(name, safe='')}?corpus={quote(corpus, safe='')}"
    return Video(video_id=name, status="queued", progress=0)


@router.get("", responses=errors("unknown_corpus", "invalid_request", *ADMITTED))
async def videos(
    gateway: Admitted,
    corpus: Chosen,
    after: Annotated[str, Query(max_length=500, description="an id, as in `next`; empty: from the first")] = "",
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> VideoPage:
    """Return the videos of a corpus by id, a page at a time: to search, on their way, and failed."""
    return await gateway.library.videos.remote(corpus, after, limit)


@router.get("/{video_id}", responses=errors(*OF_VIDEO))
async def video(video_id: VideoId, gateway: Admitted, corpus: Chosen) -> Video:
    """Tell how far a video is, and how long one that is ready."""
    return await gateway.library.video.remote(corpus, video_id)


@router.delete("/{video_id}", status_code=204, responses=errors("video_on_its_way", "too_few_videos", *OF_VIDEO))
async def delete_video(video_id: VideoId, gateway: Admitted, corpus: Chosen) -> None:
    """Take a video out of the searches that begin from now on.

    An added video's files are deleted; a video of the data build is left out, and its files stay.
    """
    await gateway.library.delete.remote(corpus, video_id)


@router.get("/{video_id}/thumbnail", response_class=Response, responses=errors(*OF_VIDEO, gives=["image/jpeg"]))
async def thumbnail(video_id: VideoId, gateway: Admitted, corpus: Chosen, t: Seconds = 0.0) -> Response:
    """Return the frame nearest to second `t`, as JPEG."""
    picture = await gateway.library.thumbnail.remote(corpus, video_id, t)
    return Response(picture, media_type="image/jpeg", headers=FOR_AN_HOUR)


@router.get("/{video_id}/clip", response_class=Response, responses=errors(*OF_CLIP, gives=["video/mp4"]))
async def clip(video_id: VideoId, start: Start, end: Seconds, gateway: Admitted, corpus: Chosen) -> Response:
    """Return the pictures from `start` to `end`, in seconds, as MP4 (H.264, no sound)."""
    part = await gateway.library.clip.remote(corpus, video_id, start, end)
    return Response(part, media_type="video/mp4", headers=FOR_AN_HOUR)


@router.get(
    "/{video_id}/file",
    response_class=FileResponse,
    responses={206: {"content": VIDEOS}, 416: {}, **errors("no_source", *OF_VIDEO, gives=VIDEOS)},
)
async def file(video_id: VideoId, gateway: Admitted, corpus: Chosen) -> FileResponse:
    """Return the source file, as a player wants it: with ranges of bytes (206, 416)."""
    path, kind = await gateway.library.source.remote(corpus, video_id)
    return FileResponse(path, media_type=kind)


async def _pieces(request: Request, intake: Intake) -> AsyncGenerator[bytes, None]:
    """Return the file that a request brings or names.

    A page of another site can send neither kind of body without this server's leave, so forms are not taken.
    """
    kind = media_type(request)
    if kind == "application/octet-stream" or kind.startswith("video/"):
        return intake.body(request.headers.get("content-length"), request.stream())
    if kind != "application/json":
        message = "send the file as application/octet-stream or video/*, or JSON with path or url"
        raise ApiError("wrong_content_type", message)
    try:
        source = VideoSource.model_validate_json(await request.body())
    except ValidationError as error:
        raise RequestValidationError([{**item, "loc": ("body", *item["loc"])} for item in error.errors()]) from error
    return intake.file(source.path) if source.path is not None else intake.url(str(source.url))
