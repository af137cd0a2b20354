"""A chat model behind an OpenAI-compatible server, which sees clips: frames as JPEG images, each after its second.

A request that meets 429, 5xx, a timeout or a lost connection is sent again by the client, after waits that double. The
key and what a server says of it are in no message.
"""

from __future__ import annotations

import base64
import io
import json
from dataclasses import dataclass
from typing import Any

import httpx2
import openai
from openai.types.chat import ChatCompletion
from PIL import Image

from vsr1.settings.parts import ChatModelConfig
from vsr1.video.clips import Clip

JPEG_QUALITY = 90


class ChatServerError(RuntimeError):
    """A request that got no reply; the message is the reason."""


class ChatServerRefusal(ChatServerError):  # noqa: N818  # says what it is
    """A server that cannot be reached, or refuses the key or the model's name: no other request would get a reply."""


@dataclass(frozen=True)
class ChatReply:
    """The text of a reply, why it ended (stop, length or another word of the server's), and the tokens it has read."""

    text: str
    finish_reason: str
    prompt_tokens: int


class ChatServer:
    """One client, for any number of threads.

    Args:
        place: of the settings, for messages.
    """

    def __init__(self, settings: ChatModelConfig, place: str) -> None:
        # The client insists on a key; servers without one ignore it.
        key = settings.key_file.read_text(encoding="utf-8").strip() if settings.key_file else "none"
        patience: dict[str, Any] = {"timeout": settings.timeout_s, "max_retries": settings.retries}
        self._client = openai.OpenAI(base_url=settings.url, api_key=key, **patience)
        self._settings, self._place = settings, place

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def reply(self, system: str, user: str, clip: Clip, seed: int) -> ChatReply:
        """Return the reply to the system's words, the user's, and a clip.

        Raises:
            ChatServerRefusal: no request will get one.
            ChatServerError: this one has none.
        """
        content = [{"type": "text", "text": user}, *video_parts(clip)]
        messages: Any = [{"role": "system", "content": system}, {"role": "user", "content": content}]
        settings, place = self._settings, self._place
        sampling: dict[str, Any] = settings.model_dump(include={"max_tokens", "temperature", "top_p"}) | {"seed": seed}
        try:
            completion = self._client.chat.completions.create(model=str(settings.model), messages=messages, **sampling)
        except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as error:
            # The body is left out: servers quote the key in it.
            raise ChatServerRefusal(
                f"{settings.url} answered {error.status_code} for model {settings.model!r}; check {place}.url, "
                f"{place}.model and {place}.key_file"
            ) from None
        except openai.APITimeoutError:
            raise ChatServerError(f"no answer in {settings.timeout_s} s, {1 + settings.retries} times") from None
        except openai.APIConnectionError as error:
            if isinstance(error.__cause__, httpx2.ConnectError):
                raise ChatServerRefusal(
                    f"{place}.url={settings.url} cannot be reached ({error.__cause__}); start the server and go on "
                    "with the same command, what is finished is kept"
                ) from None
            raise ChatServerError(f"the connection was lost ({type(error.__cause__).__name__})") from None
        except openai.APIStatusError as error:
            text = " ".join(error.response.text.replace(self._client.api_key, "***").split())[:200]
            raise ChatServerError(f"the server answered {error.status_code}: {text}") from None
        except json.JSONDecodeError:
            raise ChatServerError("the server's answer is not JSON") from None
        if not isinstance(completion, ChatCompletion) or not completion.choices:  # the client hands on what it gets
            raise ChatServerError("the server's answer is not a chat completion")
        choice, usage = completion.choices[0], completion.usage
        tokens = usage.prompt_tokens if usage else 0
        return ChatReply(choice.message.content or "", str(choice.finish_reason), tokens)


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
