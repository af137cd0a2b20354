"""Captions and answers of real films: video files, real HTTP, answers that are kept by content."""

import asyncio
import base64
import io
import shutil

import numpy as np
import pytest
from fake_chat_server import running_server, said
from PIL import Image

from actors.tools import films_of
from vsr1.config import ConfigError, load_config
from vsr1.formats.dataset import DatasetFolder
from vsr1.navigate.calls import ToolCall, ToolError
from vsr1.navigate.files import NavigateFileError, Question, questions_file, write_rows
from vsr1.navigate.plane import Member, ToolPlane
from vsr1.toy.render import encode_mp4, render
from vsr1.toy.world import Event, Film
from vsr1.video.part import read_part

FILM = Film("film", 20, (Event(0, 10, "red", "ring", "up"), Event(10, 20, "blue", "cross", "left")), seed=3)
KEY = "sk-very-secret-words"
CAPTION = ToolCall("film", "caption", (3,))  # 10 to 15 s


@pytest.fixture
def server():
    with running_server(lambda query, number: said(f"seen {query}"), r"Seconds (\d+ to \d+)") as running:
        yield running


@pytest.fixture
def data(tmp_path):
    folder = DatasetFolder(tmp_path / "data")
    folder.raw_videos("test").mkdir(parents=True)
    encode_mp4(FILM, folder.raw_videos("test") / "film.mp4")
    question = Question(question_id="q", film="film", seconds=20, question="what colour?", answer="red")
    write_rows(questions_file(folder, "test"), [question])
    (tmp_path / "key").write_text(KEY)
    return folder


def films(data, server, **captioner):
    settings = {"kind": "openai", "model": "m", "url": f"http://127.0.0.1:{server.server_port}/v1",
                "key_file": data.root.parent / "key", "frames": 4, "timeout_s": 5.0, "retries": 2}  # fmt: skip
    keys = [f"navigate.pools.captioner.{name}={value}" for name, value in (settings | captioner).items()]
    keys += ["environment=navigate", "agent.refinement=none", f"data.root={data.root}", "data.max_pixels=2048"]
    return films_of(load_config(None, keys), "test")


def plane(of_films, data):
    async def ask(call):
        return await asyncio.to_thread(of_films.answer, call)

    members = {"caption": [Member(ask)], "video_qa": [Member(ask)]}
    return ToolPlane(of_films, members, 30.0, data.root / "navigate" / "answers")


def test_a_node_is_described_from_its_own_frames_and_that_is_kept(data, server):
    tools = plane(films(data, server), data)
    result = asyncio.run(tools.use(CAPTION))
    assert (result.text, result.visual_tokens, result.cached) == ("seen 10 to 15", 321, False)
    assert tools.costs["caption"].visual_tokens == 321 and tools.costs["caption"].seconds > 0
    [request] = server.asked
    assert (request["model"], request["temperature"], request["key"]) == ("m", 0.0, f"Bearer {KEY}")
    words, *video = request["messages"][1]["content"]
    assert "of a video of 20 seconds" in words["text"] and "at most 200 words" in words["text"]
    assert [part["text"] for part in video[::2]] == ["at 10.6 s:", "at 11.9 s:", "at 13.1 s:", "at 14.4 s:"]
    jpeg = base64.b64decode(video[1]["image_url"]["url"].removeprefix("data:image/jpeg;base64,"))
    shown = np.asarray(Image.open(io.BytesIO(jpeg)), np.int16)
    assert np.abs(shown - render(FILM, np.array([10.625]))[0]).mean() < 12

    again = plane(films(data, server, url="http://127.0.0.1:9/v1"), data)  # another server of the same model
    assert asyncio.run(again.use(CAPTION)).cached and len(server.asked) == 1
    other = plane(films(data, server, model="n"), data)
    assert not asyncio.run(other.use(CAPTION)).cached and len(server.asked) == 2
    encode_mp4(Film("film", 20, FILM.events, seed=4), data.raw_videos("test") / "new.mp4")
    shutil.move(data.raw_videos("test") / "new.mp4", data.raw_videos("test") / "film.mp4")
    assert not asyncio.run(plane(films(data, server), data).use(CAPTION)).cached and len(server.asked) == 3


def test_a_question_is_asked_in_its_own_words(data, server):
    server.behaviour = lambda query, number: said("<think>hm</think>\n blue ")
    call = ToolCall("film", "video_qa", (3, 1, 2), "which colour has the cross?")
    assert asyncio.run(plane(films(data, server), data).use(call)).text == "blue"
    assert "Question: which colour has the cross?" in server.asked[0]["messages"][1]["content"][0]["text"]


def test_a_busy_server_is_asked_again_and_what_stays_wrong_fails_the_call(data, server):
    busy = (429, {"error": {"message": "slow down"}})
    server.behaviour = lambda query, number: busy if number < 2 else said("at last")
    assert films(data, server).answer(CAPTION).text == "at last" and len(server.asked) == 3
    for behaviour, message in (
        (lambda query, number: (500, {"error": {"message": f"broken {KEY}"}}), "answered 500"),
        (lambda query, number: (401, {"error": {"message": f"bad key {KEY}"}}), "captioner.key_file"),
        (lambda query, number: said("   "), "gave no words"),
        (lambda query, number: said("<think>on and on", "length"), "captioner.max_tokens"),
    ):
        server.behaviour = behaviour
        with pytest.raises(ToolError, match=rf"caption of film 'film' at film@3: .*{message}") as error:
            films(data, server).answer(CAPTION)
        assert KEY not in str(error.value)
    with pytest.raises(ToolError, match="cannot be reached"):
        films(data, server, url="http://127.0.0.1:9/v1", retries=0).answer(CAPTION)


def test_a_look_decodes_the_part_and_no_more(data, server):
    clip = films(data, server).read("film@3.1.2")
    assert clip.frames.shape == (16, 45, 45, 3) and clip.length == 20  # at most 2048 pixels
    assert 10.3 <= clip.timestamps[0] < clip.timestamps[-1] <= 10.625


@pytest.mark.parametrize("span", [(0, 20), (9, 11), (12.25, 12.5), (19.5, 20)])
def test_the_frames_of_a_part_are_those_that_are_on_then(data, span):
    path = data.raw_videos("test") / "film.mp4"
    clip = read_part(path, "film@x", span, frames=4, max_pixels=64 * 64, length=20)
    on = np.floor(clip.timestamps * 8 + 1e-9) / 8  # the film has 8 pictures a second
    difference = np.abs(clip.frames.astype(np.int16) - render(FILM, on)).mean(axis=(1, 2, 3))
    assert (difference < 12).all()


def test_films_that_are_not_there_are_named(data, server):
    (data.raw_videos("test") / "film.mp4").rename(data.raw_videos("test") / "other.mp4")
    with pytest.raises(NavigateFileError, match=r"film 'film' has no file in .*data\.videos"):
        films(data, server)
    (data.raw_videos("test") / "other.mp4").rename(data.raw_videos("test") / "film.mp4")
    for seconds, message in (([20.0, 21.0], "two questions differ"), ([2000.0], r"has 20\.0 s in .*say 2000\.0 s")):
        rows = [
            Question(question_id=str(length), film="film", seconds=length, question="?", answer="a")
            for length in seconds
        ]
        write_rows(questions_file(data, "test"), rows)
        with pytest.raises(NavigateFileError, match=message):
            films(data, server)


def test_a_captioner_that_lacks_its_settings_is_a_config_error():
    with pytest.raises(ConfigError, match=r"needs navigate.pools.captioner.model and navigate.pools.captioner.url"):
        load_config(None, ["navigate.pools.captioner.kind=openai"])
