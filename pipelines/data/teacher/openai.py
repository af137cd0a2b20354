"""A teacher behind an OpenAI-compatible server: frames as JPEG images, each after its second in the video.

A request that meets 429, 5xx, a timeout or a lost connection is sent again by the client, after waits that double. A
server that cannot be reached or refuses the key or the model's name ends the build; anything else is the failure of
one pair.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

import httpx2
import openai
from openai.types.chat import ChatCompletion
from PIL import Image

from pipelines.data.manifest import BuildError
from pipelines.data.teacher.prompts import Answer, Task, judged
from vsr1.settings.data import TeacherConfig
from vsr1.video.clips import Clip, ClipFolder

JPEG_QUALITY = 90


def ask_server(tasks: list[Task], clips: ClipFolder, teacher: TeacherConfig) -> Generator[Answer, None, None]:
    """Yield answers in the order in which they come, with at most `concurrency` requests at one time.

    Raises:
        BuildError: the server cannot be reached, or refuses the key or the model's name.
    """
    # The client insists on a key; servers without one ignore it.
    key = teacher.key_file.read_text(encoding="utf-8").strip() if teacher.key_file else "none"
    patience: dict[str, Any] = {"timeout": teacher.timeout_s, "max_retries": teacher.retries}
    server = openai.OpenAI(base_url=teacher.url, api_key=key, **patience)
    with server as client, ThreadPoolExecutor(teacher.concurrency) as threads:
        requests = [threads.submit(_answer, client, task, clips, teacher) for task in tasks]
        try:
            for request in as_completed(requests):
                yield request.result()
        finally:
            threads.shutdown(wait=False, cancel_futures=True)


def video_parts(clip: Clip) -> list[dict[str, Any]]:
    """Return the clip as message parts: for each frame a line with its time in seconds, then the picture."""
    parts: list[dict[str, Any]] = []
    for frame, seconds in zip(clip.frames, clip.timestamps, strict=True):
        jpeg = io.BytesIO()
        Image.fromarray(frame).save(jpeg, "JPEG", quality=JPEG_QUALITY)
        url = "data:image/jpeg;base64," + base64.b64encode(jpeg.getvalue()).decode()
        parts.append({"type": "text", "text": f"at {seconds:.1f} s:"})
        parts.append({"type": "image_url", "image_url": {"url": url}})
    return parts


def _answer(client: openai.OpenAI, task: Task, clips: ClipFolder, teacher: TeacherConfig) -> Answer:
    content = [{"type": "text", "text": task.user}, *video_parts(clips.read(task.video_id))]
    messages: Any = [{"role": "system", "content": task.system}, {"role": "user", "content": content}]
    for attempt in range(teacher.attempts):
        answer = _reply(client, task.pair_id, messages, teacher, teacher.seed + attempt)
        if not answer["error"] or not answer["finish_reason"]:
            break  # good, or a request that the client has already sent again
    return answer


def _reply(client: openai.OpenAI, pair_id: str, messages: Any, teacher: TeacherConfig, seed: int) -> Answer:
    """Send one request; a failed one has no finish reason."""
    sampling: dict[str, Any] = teacher.model_dump(include={"max_tokens", "temperature", "top_p"}) | {"seed": seed}
    try:
        completion = client.chat.completions.create(model=str(teacher.model), messages=messages, **sampling)
    except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as error:
        # The body is left out: servers quote the key in it.
        raise BuildError(
            f"{teacher.url} answered {error.status_code} for model {teacher.model!r}; check data.teacher.url, "
            "data.teacher.model and data.teacher.key_file"
        ) from None
    except openai.APITimeoutError:
        return _failed(pair_id, f"no answer in {teacher.timeout_s} s, {1 + teacher.retries} times")
    except openai.APIConnectionError as error:
        if isinstance(error.__cause__, httpx2.ConnectError):
            raise BuildError(
                f"data.teacher.url={teacher.url} cannot be reached ({error.__cause__}); start the server and build "
                "again, finished pairs are kept"
            ) from None
        return _failed(pair_id, f"the connection was lost ({type(error.__cause__).__name__})")
    except openai.APIStatusError as error:
        text = " ".join(error.response.text.replace(client.api_key, "***").split())[:200]
        return _failed(pair_id, f"the server answered {error.status_code}: {text}")
    except json.JSONDecodeError:
        return _failed(pair_id, "the server's answer is not JSON")
    if not isinstance(completion, ChatCompletion) or not completion.choices:  # the client hands on what it gets
        return _failed(pair_id, "the server's answer is not a chat completion")
    choice = completion.choices[0]
    return judged(pair_id, choice.message.content or "", str(choice.finish_reason))


def _failed(pair_id: str, error: str) -> Answer:
    return Answer(pair_id=pair_id, reasoning="", think="", finish_reason="", raw="", error=error)
