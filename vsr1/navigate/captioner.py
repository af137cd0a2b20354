"""Who describes the nodes of real films, and answers questions about them: a chat model that sees their frames.

It is behind an OpenAI-compatible server, or in an engine of our own. A reply that is empty or ends inside its thinking
is no answer: the call fails, and with it the samples that wait for it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import lru_cache
from typing import Protocol

from vsr1.chat_server import ChatServer, ChatServerError
from vsr1.episode.moments import Span
from vsr1.formats.digest import value_sha256
from vsr1.navigate.calls import ToolCall, ToolError, ToolResult
from vsr1.settings.navigate import CaptionerConfig
from vsr1.video.clips import Clip

WORDS = {1: 200, 2: 150, 3: 100}  # most words of a caption, by level
SYSTEM = (
    "You watch a part of a long video, as frames that are spread over it, each after its second in the whole video. "
    "Say only what can be seen, plainly, without an introduction."
)


class Prompted(Protocol):
    """What a chat model gives back."""

    @property
    def text(self) -> str: ...

    @property
    def prompt_tokens(self) -> int: ...


_STARTING = threading.Lock()
Chat = Callable[[str, str, Clip], Prompted]  # system's words, user's words, clip


def captioner_name(settings: CaptionerConfig) -> str:
    """Return what names a captioner with everything that its words depend on, not where it is or how long we wait."""
    decides = {"kind", "folder", "model", "max_tokens", "temperature", "top_p", "seed", "dtype", "frames", "max_pixels"}
    values = settings.model_dump(mode="json", include=decides)
    return value_sha256([values, SYSTEM, WORDS, words_of(ToolCall("", "caption", (1,)), (0, 1), 1)])


def words_of(call: ToolCall, span: Span, seconds: float) -> str:
    """Return what is asked about the frames of a node."""
    part = f"Seconds {span[0]:.0f} to {span[1]:.0f} of a video of {seconds:.0f} seconds.\n"
    if call.tool == "video_qa":
        return f"{part}Question: {call.words}\nAnswer in one sentence; say so if these frames do not show it.\n"
    words = WORDS[max(len(call.node or ()), 1)]
    return f"{part}Describe what happens, in order, with seconds, in at most {words} words.\n"


def described(call: ToolCall, words: str, clip: Clip, settings: CaptionerConfig, device: str) -> ToolResult:
    """Return the caption of a node, or the answer to a question about it, from its frames.

    Raises:
        ToolError: the model gave none that can be used.
    """
    name = f"{call.tool} of film {call.film!r} at {clip.video_id}"
    try:
        reply = start_chat(settings, device)(SYSTEM, words, clip)
    except ChatServerError as error:
        raise ToolError(f"{name}: {error}") from error
    _, closed, text = reply.text.rpartition("</think>")
    if not text.strip() or (not closed and "<think>" in reply.text):
        raise ToolError(
            f"{name}: the model gave no words after {reply.prompt_tokens} tokens of prompt; raise "
            "navigate.pools.captioner.max_tokens, or take another model"
        )
    return ToolResult(text.strip(), visual_tokens=reply.prompt_tokens)


def start_chat(settings: CaptionerConfig, device: str) -> Chat:
    """Return the model of this process, which the first call starts; who comes meanwhile waits for the same one."""
    with _STARTING:
        return _chat(settings.model_dump_json(), device)


@lru_cache(maxsize=1)
def _chat(settings_json: str, device: str) -> Chat:
    settings = CaptionerConfig.model_validate_json(settings_json)
    if settings.kind == "openai":
        server = ChatServer(settings, "navigate.pools.captioner")
        return lambda system, user, clip: server.reply(system, user, clip, settings.seed)
    return EngineChat(settings, device)


class EngineChat:
    """An engine that threads share: what they ask while it works is its next batch."""

    def __init__(self, settings: CaptionerConfig, device: str) -> None:
        from vsr1.engine.offline import OfflineEngine  # torch and vLLM stay out of who asks servers

        assert settings.folder is not None  # the configuration's own check
        self._engine = OfflineEngine(settings.folder, settings.engine, device=device, dtype=settings.dtype)
        self._settings = settings
        self._working, self._adding = threading.Lock(), threading.Lock()
        self._waiting: list[tuple[tuple[str, str, Clip], Future[Prompted]]] = []

    def __call__(self, system: str, user: str, clip: Clip) -> Prompted:
        future: Future[Prompted] = Future()
        with self._adding:
            self._waiting.append(((system, user, clip), future))
        with self._working:
            if not future.done():
                with self._adding:
                    batch, self._waiting = self._waiting, []
                self._answer(batch)
        return future.result()

    def _answer(self, batch: Sequence[tuple[tuple[str, str, Clip], Future[Prompted]]]) -> None:
        from vsr1.engine.offline import VideoPrompt

        sampling = self._settings.model_dump(include={"max_tokens", "temperature", "top_p", "seed"})
        try:
            replies = self._engine.generate([VideoPrompt(*prompt) for prompt, _ in batch], **sampling)
        except Exception as error:
            for _, future in batch:
                future.set_exception(error)
            return
        for (_, future), reply in zip(batch, replies, strict=True):
            future.set_result(reply)
