"""The tool plane without Ray: calls are made once, late and failing ones fail, captions stay on disk by content."""

import asyncio
import json

import pytest

from vsr1.formats.dataset import DatasetFolder
from vsr1.navigate.calls import ToolCall, ToolError, ToolResult
from vsr1.navigate.plane import Member, ToolPlane
from vsr1.navigate.tree import ClipTree
from vsr1.settings.navigate import NavigateConfig
from vsr1.toy.long_corpus import LongFilms, write_long_corpus

CAPTION = ToolCall("f", "caption", (1, 2))


class Table:
    """Films whose captions say which node they are of; `content` names what they show."""

    model = "table"

    def __init__(self, content="a"):
        self.content = content

    def digest(self, film):
        return self.content + film

    def tree(self, film):
        return ClipTree.of(700)

    def answer(self, call):
        return ToolResult(f"{call.tool} {call.node} {call.words}", visual_tokens=5)

    def read(self, video_id):
        raise NotImplementedError


class Pool:
    """Members that note what they are asked, and answer after a while or never."""

    def __init__(self, films, seconds=0.0, error=None):
        self.films, self.seconds, self.error, self.calls, self.restarts = films, seconds, error, [], 0

    def member(self):
        async def ask(call):
            self.calls.append(call)
            await asyncio.sleep(self.seconds)
            if self.error:
                raise self.error
            return self.films.answer(call)

        return Member(ask, self.restart)

    def restart(self):
        self.restarts += 1


def plane(films, captions, answers=None, **settings):
    pools = {"caption": [captions.member()], "video_qa": [(answers or captions).member()]}
    return ToolPlane(films, pools, settings.pop("deadline_s", 5.0), **settings)


def test_a_group_makes_each_call_once_whether_the_tool_is_busy_or_free():
    films = Table()
    pool = Pool(films, 0.02)
    tools = plane(films, pool)

    async def group():
        first = await asyncio.gather(*(tools.use(CAPTION) for _ in range(16)))
        return [*first, await tools.use(CAPTION)]

    results = asyncio.run(group())
    assert pool.calls == [CAPTION] and {result.text for result in results} == {"caption (1, 2) "}
    costs = tools.costs["caption"]
    assert (costs.calls, costs.asked, costs.failed, costs.visual_tokens) == (17, 1, 0, 5)
    assert costs.seconds >= 0.02 and results[-1].cached and not results[0].cached


def test_pools_are_apart_and_the_least_loaded_member_is_asked():
    films = Table()
    captions, answers, second = Pool(films, 0.01), Pool(films), Pool(films, 0.01)
    tools = plane(films, captions, answers)
    tools.pools["caption"].append(second.member())
    question = ToolCall("f", "video_qa", (1, 1, 1), "who?")

    async def calls():
        await asyncio.gather(*(tools.use(ToolCall("f", "caption", (1, n))) for n in range(1, 5)), tools.use(question))

    asyncio.run(calls())
    assert (len(captions.calls), len(second.calls), answers.calls) == (2, 2, [question])


def test_a_call_without_an_answer_fails_for_all_who_wait_and_may_be_made_again():
    films = Table()
    pool = Pool(films, 60)
    tools = plane(films, pool, deadline_s=0.05)

    async def group():
        return await asyncio.gather(*(tools.use(CAPTION) for _ in range(3)), return_exceptions=True)

    errors = asyncio.run(group())
    assert all(isinstance(error, ToolError) for error in errors)
    assert "caption of film 'f' at 1,2: no answer in 0.05 s" in str(errors[0])
    assert (pool.restarts, tools.costs["caption"].failed, len(pool.calls)) == (1, 1, 1)
    pool.seconds = 0
    assert asyncio.run(tools.use(CAPTION)).text == "caption (1, 2) "


def test_an_error_of_a_tool_is_handed_on_and_not_kept(tmp_path):
    films = Table()
    pool = Pool(films, error=ToolError("the server is gone"))
    tools = plane(films, pool, cache=tmp_path)
    with pytest.raises(ToolError, match="gone"):
        asyncio.run(tools.use(CAPTION))
    assert list(tmp_path.rglob("*.json")) == [] and tools.costs["caption"].failed == 1


def test_captions_stay_on_disk_under_their_content(tmp_path):
    pools = [Pool(Table("a")), Pool(Table("a")), Pool(Table("b"))]
    results = [asyncio.run(plane(pool.films, pool, cache=tmp_path).use(CAPTION)) for pool in pools]
    assert [len(pool.calls) for pool in pools] == [1, 0, 1]
    assert [result.cached for result in results] == [False, True, False]
    files = list(tmp_path.rglob("*.json"))
    assert len(files) == 2 and json.loads(files[0].read_text())["text"] == "caption (1, 2) "


def test_a_tree_without_captions_keeps_none(tmp_path):
    films = Table()
    films.answer = lambda call: ToolResult(None)
    pool = Pool(films)
    tools = plane(films, pool, cache=tmp_path)
    assert asyncio.run(tools.use(CAPTION)).text is None
    assert asyncio.run(tools.use(ToolCall("f", "find", None, "x"))).text is None
    assert list(tmp_path.rglob("*.json")) == []


def test_a_search_reads_the_captions_of_the_second_level(tmp_path):
    folder = DatasetFolder(tmp_path)
    write_long_corpus(folder, {"test": 1}, NavigateConfig(), 0)
    films = LongFilms.of_split(folder, "test", 4)
    [film] = films.films.values()
    pool = Pool(films)
    tools = plane(films, pool)
    call = ToolCall(film.film, "find", None, f"a {film.plan.shape} a {film.plan.detail}")
    nodes = asyncio.run(tools.use(call)).nodes
    assert nodes == film.result(call).nodes and len(pool.calls) == 16
    asyncio.run(tools.use(call))
    assert len(pool.calls) == 16
