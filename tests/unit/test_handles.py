"""What is asked of actors that Ray starts again."""

import asyncio
from typing import Any

import pytest
import ray

from actors import handles
from actors.handles import RETRIES, answer_when_back


class Method:
    """A method of an actor whose first calls fail with these errors."""

    def __init__(self, *errors: Exception) -> None:
        self.errors, self.calls, self.chosen = list(errors), list[Any](), dict[str, Any]()

    def options(self, **options: Any) -> "Method":
        self.chosen = options
        return self

    async def remote(self, *arguments: Any) -> str:
        self.calls.append(arguments)
        if self.errors:
            raise self.errors.pop(0)
        return "an answer"


def test_a_question_is_asked_until_the_actor_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handles, "PAUSE_S", 0.0)
    method = Method(*[ray.exceptions.ActorUnavailableError("its node is gone", None) for _ in range(50)])
    assert asyncio.run(answer_when_back(method, "a question")) == "an answer"
    assert method.calls == [("a question",)] * 51 and method.chosen == {"max_task_retries": RETRIES}


def test_one_that_is_gone_for_good_is_asked_once() -> None:
    method = Method(ray.exceptions.ActorDiedError())
    with pytest.raises(ray.exceptions.ActorDiedError):
        asyncio.run(answer_when_back(method, "a question"))
    assert len(method.calls) == 1
