"""A teacher behind an OpenAI-compatible server (`vsr1.chat_server`).

A server that cannot be reached or refuses the key or the model's name ends the build; anything else is the failure of
one pair.
"""

from __future__ import annotations

from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing

from pipelines.data.manifest import BuildError
from pipelines.data.teacher.prompts import Answer, Task, judged
from vsr1.chat_server import ChatServer, ChatServerError, ChatServerRefusal
from vsr1.settings.data import TeacherConfig
from vsr1.video.clips import Clip, ClipFolder


def ask_server(tasks: list[Task], clips: ClipFolder, teacher: TeacherConfig) -> Generator[Answer, None, None]:
    """Yield answers in the order in which they come, with at most `concurrency` requests at one time.

    Raises:
        BuildError: the server cannot be reached, or refuses the key or the model's name.
    """
    with closing(ChatServer(teacher, "data.teacher")) as server, ThreadPoolExecutor(teacher.concurrency) as threads:
        requests = [threads.submit(_answer, server, task, clips, teacher) for task in tasks]
        try:
            for request in as_completed(requests):
                yield request.result()
        finally:
            threads.shutdown(wait=False, cancel_futures=True)


def _answer(server: ChatServer, task: Task, clips: ClipFolder, teacher: TeacherConfig) -> Answer:
    clip = clips.read(task.video_id)
    for attempt in range(teacher.attempts):
        answer = _reply(server, task, clip, teacher.seed + attempt)
        if not answer["error"] or not answer["finish_reason"]:
            break  # good, or a request that the client has already sent again
    return answer


def _reply(server: ChatServer, task: Task, clip: Clip, seed: int) -> Answer:
    """Send one request; a failed one has no finish reason."""
    try:
        reply = server.reply(task.system, task.user, clip, seed)
    except ChatServerRefusal as refusal:
        raise BuildError(str(refusal)) from None
    except ChatServerError as error:
        return Answer(pair_id=task.pair_id, reasoning="", think="", finish_reason="", raw="", error=str(error))
    return judged(task.pair_id, reply.text, reply.finish_reason)
