"""The router and its pools as actors: a call is made once, one that hangs fails in time and its actor starts again."""

import asyncio
import time
from pathlib import Path

import pytest
import ray

from actors.tools import ToolRouter
from vsr1.navigate.calls import ToolCall, ToolError, ToolResult
from vsr1.navigate.tree import ClipTree
from vsr1.settings.navigate import ToolsConfig

pytestmark = pytest.mark.usefixtures("ray_cluster")


class Slow:
    """Films whose captioner notes each call in a folder, and hangs while a file says so."""

    model = "slow"

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def digest(self, film):
        return film

    def tree(self, film):
        return ClipTree.of(700)

    def start(self):
        time.sleep(2.0)  # longer than the deadline of a call

    def answer(self, call):
        (self._folder / f"{call.tool}-{call.node}-{time.monotonic_ns()}").touch()
        while (self._folder / "hang").exists():
            time.sleep(0.05)
        if call.words == "fail":
            raise ToolError("the server refuses")
        return ToolResult(f"{call.node}")

    def read(self, video_id):
        raise NotImplementedError


def test_a_group_pays_once_and_a_hanging_captioner_costs_its_deadline(tmp_path):
    notes = tmp_path / "notes"
    notes.mkdir()
    config = ToolsConfig(deadline_s=1.5, calls=1)
    router = ToolRouter.remote(Slow(notes), config, tmp_path / "answers")

    async def ask(*calls):
        return await asyncio.gather(*(router.use.remote(call) for call in calls), return_exceptions=True)

    first, other = ToolCall("f", "caption", (1, 1)), ToolCall("f", "caption", (1, 2))
    ray.get(router.costs.remote())
    answers = asyncio.run(ask(*[first] * 8))
    assert {answer.text for answer in answers} == {"(1, 1)"}
    assert len(list(notes.glob("caption-(1, 1)-*"))) == 1

    (notes / "hang").touch()
    late = asyncio.run(ask(other, other))
    assert all(isinstance(error, ToolError) and "no answer in 1.5 s" in str(error) for error in late)
    (notes / "hang").unlink()
    [answer] = asyncio.run(ask(other))  # once its process is there
    assert answer.text == "(1, 2)"

    [failure] = asyncio.run(ask(ToolCall("f", "video_qa", (1, 1, 1), "fail")))
    assert isinstance(failure, ToolError) and "the server refuses" in str(failure)
    costs = ray.get(router.costs.remote())
    assert costs["caption"]["calls"] == 11 and costs["caption"]["failed"] == 1 and costs["video_qa"]["failed"] == 1
    ray.kill(router)

    again = ToolRouter.remote(Slow(notes), config, tmp_path / "answers")
    made = len(list(notes.glob("caption-*")))
    assert ray.get(again.use.remote(first)).cached and len(list(notes.glob("caption-*"))) == made
