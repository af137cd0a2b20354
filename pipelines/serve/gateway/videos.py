"""The routes of the videos: adding, following and deleting them, and what can be seen of one."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Annotated, Any
from urllib.parse import quote, unquote

import anyio
from fastapi import APIRouter, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse
from fastapi.routing import APIRoute
from pydantic import ValidationError
from starlette.convertors import StringConvertor, register_url_convertor
from starlette.datastructures import Headers
from starlette.responses import MalformedRangeHeader, RangeNotSatisfiable
from starlette.routing import Match
from starlette.types import Receive, Scope, Send

from pipelines.serve.gateway.answers import ADMITTED, WITH_BODY, answer, errors
from pipelines.serve.gateway.faults import ApiError
from pipelines.serve.gateway.gateway import Admitted, Chosen
from pipelines.serve.gateway.guard import JSON, media_type
from pipelines.serve.gateway.intake import Intake
from pipelines.serve.gateway.schema import Seconds, Version, Video, VideoId, VideoPage, VideoSource
from vsr1.video.check import MEDIA_TYPES

PARTS = ("/thumbnail", "/clip", "/file")


class VideoIdConvertor(StringConvertor):
    """An id in a path: anything, slashes of sub-folders too."""

    regex = r"[\s\S]+"


class VideoRoute(APIRoute):
    """A route of a video. What follows an id is what a slash separates as it was sent: `%2F` belongs to the id.

    So `/v1/videos/a/clip` is a part of video `a`, `/v1/videos/a%2Fclip` and `/v1/videos/clip` are videos.
    """

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        pieces = (
            (scope.get("raw_path") or scope["path"].encode()).decode(errors="replace").split("/")[3:]
        )  # behind /v1/videos/
        has_part = len(pieces) > 1 and f"/{unquote(pieces[-1])}" in PARTS
        return super().matches(scope) if has_part == self.path.endswith(PARTS) else (Match.NONE, {})


register_url_convertor("video", VideoIdConvertor())

router = APIRouter(prefix="/v1/videos", tags=["videos"], route_class=VideoRoute)
OF_VIDEO = ("unknown_video", "unknown_corpus", "invalid_request", "retrieval_failed", *ADMITTED)
OF_DELETION = ("video_on_its_way", "too_few_videos", "stopping", "disk_full", *OF_VIDEO)
OF_CLIP = ("invalid_range", "decode_limit", "no_source", "not_a_video", "disk_full", *OF_VIDEO)
OF_FILE = ("not_a_video", "too_many_pixels", "too_many_frames", "too_long", "decode_limit", "too_large", "too_slow")
OF_SOURCE = ("paths_are_off", "path_refused", "urls_are_off", "url_refused", "fetch_failed")
OF_NAME = ("invalid_video_id", "duplicate_video", "video_exists", "unknown_corpus", "busy", "stopping", "disk_full")
KEPT: dict[int | str, dict[str, Any]] = {304: {"description": "it is what `If-None-Match` names"}}
Start = Annotated[float, Query(ge=0, allow_inf_nan=False, examples=[1.0])]
VIDEOS: dict[str, Any] = {kind: {} for kind in (*MEDIA_TYPES.values(), "video/webm")}
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


@router.get(
    "/{video_id:video}/thumbnail", response_class=Response, responses=errors(*OF_VIDEO, gives=["image/jpeg"]) | KEPT
)
async def thumbnail(
    video_id: VideoId, request: Request, gateway: Admitted, corpus: Chosen, t: Seconds = 0.0, v: Version = None
) -> Response:
    """Return the frame nearest to second `t`, as JPEG."""
    picture, version = await gateway.library.thumbnail.remote(corpus, video_id, t)
    return _kept(Response(picture, media_type="image/jpeg"), request, version, v)


@router.get("/{video_id:video}/clip", response_class=Response, responses=errors(*OF_CLIP, gives=["video/mp4"]) | KEPT)
async def clip(
    video_id: VideoId, start: Start, end: Seconds, request: Request, gateway: Admitted, corpus: Chosen,
    v: Version = None,
) -> Response:  # fmt: skip
    """Return the pictures from `start` to `end`, in seconds, as MP4 (H.264, no sound)."""
    part, version = await gateway.library.clip.remote(corpus, video_id, start, end)
    return _kept(Response(part, media_type="video/mp4"), request, version, v)


@router.get(
    "/{video_id:video}/file",
    response_class=FileResponse,
    responses={206: {"content": VIDEOS}, **errors("no_source", "no_such_range", *OF_VIDEO, gives=VIDEOS), **KEPT},
)
async def file(video_id: VideoId, request: Request, gateway: Admitted, corpus: Chosen, v: Version = None) -> Response:
    """Return the source file, as a player wants it: with ranges of bytes."""
    path, kind, version = await gateway.library.source.remote(corpus, video_id)
    return _kept(Film(path, media_type=kind), request, version, v)


@router.get("/{video_id:video}", responses=errors(*OF_VIDEO))
async def video(video_id: VideoId, gateway: Admitted, corpus: Chosen) -> Video:
    """Tell how far a video is, and how long one that is ready."""
    return await gateway.library.video.remote(corpus, video_id)


@router.delete("/{video_id:video}", status_code=204, responses=errors(*OF_DELETION))
async def delete_video(video_id: VideoId, gateway: Admitted, corpus: Chosen) -> None:
    """Take a video out of the searches that begin from now on.

    An added video's files are deleted; a video of the data build is left out, and its files stay.
    """
    await gateway.library.delete.remote(corpus, video_id)


class Film(FileResponse):
    """A file by ranges: one of another unit or form is as if it were not there (RFC 9110 14.2)."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        size = (await anyio.Path(self.path).stat()).st_size
        try:
            self._parse_range_header(Headers(scope=scope).get("range", "bytes=0-"), size)
        except MalformedRangeHeader:
            scope = {**scope, "headers": [pair for pair in scope["headers"] if pair[0] != b"range"]}
        except RangeNotSatisfiable:
            refusal = ApiError("no_such_range", f"the file has {size} bytes; ask for a range of them")
            return await answer(scope["path"], refusal, {"Content-Range": f"bytes */{size}"})(scope, receive, send)
        await super().__call__(scope, receive, send)


def _kept(response: Response, request: Request, version: str, wanted: str | None) -> Response:
    """Return a response that may be kept for good under an address with its version, and is asked for again elsewhere.

    Raises:
        ApiError: 404 `unknown_video`, where another version is wanted.
    """
    if wanted not in (None, version):
        raise ApiError("unknown_video", "another video has this id by now; ask for its version")
    control = "private, max-age=31536000, immutable" if wanted else "private, no-cache"
    headers = {"ETag": f'"{version}"', "Cache-Control": control}
    if headers["ETag"] in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    response.headers.update(headers)
    return response


async def _pieces(request: Request, intake: Intake) -> AsyncGenerator[bytes, None]:
    """Return the file that a request brings or names; `Guard` has seen to it that it does either."""
    if media_type(request.headers) != JSON:
        return intake.body(request.headers.get("content-length"), request.stream())
    try:
        source = VideoSource.model_validate_json(await request.body())
    except ValidationError as error:
        raise RequestValidationError([{**item, "loc": ("body", *item["loc"])} for item in error.errors()]) from error
    return intake.file(source.path) if source.path is not None else intake.url(str(source.url))
