"""What can go wrong, once for programs and once for people: every refusal of every route has a code of this table."""

from __future__ import annotations

import errno
from typing import Any

CODES: dict[str, tuple[int, str]] = {  # HTTP status, and the message where the place that refuses has no better one
    "unreadable_body": (400, "There was an error parsing the body"),
    "unknown_key": (401, "send a valid API key: `Authorization: Bearer KEY` or `X-API-Key: KEY`"),
    "paths_are_off": (403, "no paths are taken here: serve.upload.path_root is not set; upload the file"),
    "urls_are_off": (403, "nothing is fetched here: serve.upload.urls is false; upload the file"),
    "unknown_route": (404, "GET /v2/search: no such route; /openapi.json lists them"),
    "unknown_corpus": (404, "corpus 'films' is not served; there are toy"),
    "unknown_model": (404, "model 'huge' is not served; there are small, large"),
    "unknown_video": (404, "corpus 'toy' has no video 'test_9999'; ids are those of the answers"),
    "no_source": (404, "the source file of video 'test_0001' is gone; put it back, or delete the video and add it"),
    "model_not_found": (404, "model 'gpt-4o' is not served; there is vsr1"),
    "unknown_search": (404, "there is no such search, or it has been over for a while; search again"),
    "wrong_method": (405, "PUT /v1/search: not with this method; the Allow header names those that go"),
    "slow_body": (408, "the body did not arrive within 20 s; send it faster"),
    "too_slow": (408, "the file took more than serve.upload.limit_s=600 s, or stopped coming; send it again"),
    "duplicate_video": (409, "the corpus has this file as video 'test_0001'"),
    "video_exists": (409, "the corpus has another video 'test_0001'; delete it, or name this one otherwise"),
    "video_on_its_way": (409, "video 'kitchen_02' is on its way; delete it when it is ready or has failed"),
    "too_few_videos": (409, "a corpus needs 2 videos; add others before this one goes"),
    "search_gone": (410, "the search was cancelled, by a request or because nobody read its events; search again"),
    "gone": (499, "who asked went away before the answer"),  # as nginx counts it: nobody reads this
    "body_too_large": (413, "the body is larger than 1024 KiB, see serve.body_limit_kib; send less"),
    "too_large": (413, "a video may have serve.upload.max_mib=1024 MiB; encode it smaller"),
    "wrong_content_type": (415, "send the body as Content-Type: application/json"),
    "no_such_range": (416, "the file has 1000 bytes; ask for a range of them"),
    "foreign_host": (
        421,
        "this server does not answer for 'films.example'; name it in serve.hosts",
    ),
    "invalid_request": (422, "query: String should have at least 1 character"),
    "query_too_long": (422, "ask in fewer words: the prompt is longer than the model's 1024 tokens"),
    "invalid_video_id": (422, "video_id '.hidden' must not begin with a dot"),
    "not_a_video": (422, "the file is not a video that can be used"),
    "too_many_pixels": (422, "a frame has more pixels than serve.upload.max_pixels; encode it smaller"),
    "too_many_frames": (422, "the video has more than serve.upload.max_frames frames"),
    "too_long": (422, "the video is longer than serve.upload.max_seconds"),
    "decode_limit": (422, "decoding took more memory or time than serve.upload allows; encode it smaller or shorter"),
    "path_refused": (422, "path '../films' is not a file below serve.upload.path_root that can be read"),
    "url_refused": (422, "'http://10.0.0.1/film.mp4' is not fetched: its address is not public"),
    "fetch_failed": (422, "'https://example.org/film.mp4' answered 404; upload the file instead"),
    "invalid_range": (422, "from 3 to 2 s: start must be before end, end within the video's 20.000 s"),
    "rate_limited": (429, "the limits of key 'tests' are reached"),
    "busy": (429, "this server runs as many searches as it takes; try again"),
    "headers_too_large": (431, "the headers are larger than 32 KiB; send less"),
    "internal_error": (500, "the server has a fault; its log has it under the X-Request-Id of this answer"),
    "agent_failed": (503, "the search broke off (ActorDiedError)"),
    "retrieval_failed": (503, "the index does not answer"),
    "stopping": (503, "this server is being stopped; ask again in a minute"),
    "not_ready": (503, "no agent runs of small; wait for it"),
    "search_timeout": (503, "a shard of the index did not answer in time"),
    "disk_full": (507, "the disk of the server is full; free some, or tell who runs it"),
}
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)  # of an OSError
LONGEST_MESSAGE = 1000  # characters; what was sent may be in it


class ApiError(Exception):
    """A refusal: a code of `CODES` with its status and message, or with others where they are given."""

    def __init__(self, code: str, message: str = "", retry_after_s: int = 0, status: int = 0) -> None:
        super().__init__(message or CODES[code][1])
        self.code, self.retry_after_s, self.status = code, retry_after_s, status or CODES[code][0]

    def __reduce__(self) -> tuple[type[ApiError], tuple[str, str, int, int]]:
        return ApiError, (self.code, str(self), self.retry_after_s, self.status)

    def body(self) -> dict[str, Any]:
        """Return the body of the answer, which what was sent cannot make long."""
        message = str(self)
        cut = message if len(message) <= LONGEST_MESSAGE else f"{message[:LONGEST_MESSAGE]} …"
        return {"error": {"code": self.code, "message": cut}}


def reason(error: BaseException) -> str:
    """Return the message of an error without the wrapping of Ray, if it comes from another process."""
    return str(getattr(error, "cause", error))
