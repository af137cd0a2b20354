"""The teacher behind an OpenAI-compatible server: a real HTTP server that answers well, badly, late or not at all."""

import base64
import io
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_chat_server import Reply, Server, running_server, said
from PIL import Image

from pipelines.data.manifest import BuildError
from pipelines.data.teacher.reasoning import TeacherOutcome, write_reasoning
from vsr1.config import Config, ConfigError, load_config
from vsr1.formats.atomic import read_lines
from vsr1.formats.dataset import DatasetFolder
from vsr1.video.clips import write_meta

KEY = "sk-very-secret-words"


def good(query: str, number: int) -> Reply:
    return said(f"hm</think>\nReasoning: seen for {query}")


@pytest.fixture
def server() -> Iterator[Server]:
    with running_server(good, 'Query: "(.*)"') as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path, clip_rows: Callable[[Path], list[dict[str, Any]]]) -> DatasetFolder:
    (tmp_path / "key").write_text(KEY + "\n")
    dataset = DatasetFolder(tmp_path / "data")
    write_meta(dataset.clips("train"), clip_rows(dataset.clips("train")))
    return dataset


def ask(folder: DatasetFolder, server: Server, pool: list[dict[str, Any]], **teacher: Any) -> TeacherOutcome:
    settings = {"kind": "openai", "model": "m", "url": f"http://127.0.0.1:{server.server_port}/v1",
                "key_file": folder.root.parent / "key", "timeout_s": 5.0, "retries": 2, "attempts": 2,
                "max_failed_fraction": 1.0}  # fmt: skip
    config = Config.model_validate({"data": {"root": folder.root, "teacher": settings | teacher}})
    return write_reasoning(folder, pool, config, lambda text: None)


def test_rows_come_in_pool_order_with_the_teachers_words(folder: DatasetFolder, server: Server, pool: Any) -> None:
    def one_by_one(query: str, number: int) -> Reply:
        time.sleep(0.05)
        return good(query, number)

    server.behaviour = one_by_one
    outcome = ask(folder, server, pool, concurrency=2)
    assert outcome.rows == read_lines(folder.reasoning())
    assert not outcome.failed
    assert read_lines(folder.reasoning_failures()) == []
    assert [row["pair_id"] for row in outcome.rows] == [pair["pair_id"] for pair in pool]
    assert outcome.rows[0] == pool[0] | {
        "model_label": "match", "model_reasoning": "seen for query 0", "model_temporal_grounding": "N/A",
        "model_temporal_start": None, "model_temporal_end": None, "model_think": "hm", "model_finish_reason": "stop",
        "model_error": "", "parsed_ok": True, "model_gold_consistent": True,
        "model_raw_response": "hm</think>\nReasoning: seen for query 0",
    }  # fmt: skip
    assert server.most_running == 2
    request = next(asked for asked in server.asked if "query 0" in asked["messages"][1]["content"][0]["text"])
    assert (request["path"], request["key"], request["model"]) == ("/v1/chat/completions", f"Bearer {KEY}", "m")
    words, *video = request["messages"][1]["content"]
    assert "begins at 1.0 s and ends at 4.0 s" in words["text"]
    assert [part["text"] for part in video[::2]] == ["at 0.0 s:", "at 1.3 s:", "at 2.6 s:", "at 3.9 s:"]
    jpeg = base64.b64decode(video[1]["image_url"]["url"].removeprefix("data:image/jpeg;base64,"))
    assert Image.open(io.BytesIO(jpeg)).size == (32, 32)


def test_what_cannot_be_used_is_listed_and_never_a_row(
    folder: DatasetFolder, server: Server, pool: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def mixed(query: str, number: int) -> Reply:
        match query:
            case "query 0":
                return said("thinking, thinking", "length")
            case "query 1":
                return said("</think>Reasoning:") if number else said(None)
            case "query 2":
                return (429, {"error": {"message": "slow down"}}) if not number else good(query, number)
            case "query 3":
                return 500, {"error": {"message": f"broken, and by the way {KEY}"}}
            case "query 4":
                time.sleep(1.0)
                return good(query, number)
        return (200, "no JSON at all") if query == "query 5" else said("Reasoning: right, the second time") \
            if number else said("no such line")  # fmt: skip

    server.behaviour = mixed
    with caplog.at_level(logging.DEBUG):
        outcome = ask(folder, server, pool, timeout_s=0.3)
    assert [row["model_reasoning"] for row in outcome.rows] == ["seen for query 2", "right, the second time"]
    listed = {row["pair_id"]: row["error"] for row in read_lines(folder.reasoning_failures())}
    assert listed == outcome.failed
    reasons = [listed[pool[i]["pair_id"]] for i in (0, 1, 3, 4, 5)]
    assert "finish reason 'length'" in reasons[0]
    assert "empty" in reasons[1]
    assert "answered 500" in reasons[2]
    assert "no answer in 0.3 s, 3 times" in reasons[3]
    assert "not JSON" in reasons[4]
    assert server.count == {"query 0": 2, "query 1": 2, "query 2": 2, "query 3": 3, "query 4": 3, "query 5": 1,
                            "query 6": 2}  # fmt: skip
    seeds = [asked["seed"] for asked in server.asked if "query 6" in asked["messages"][1]["content"][0]["text"]]
    assert seeds == [42, 43]
    written = "".join(path.read_text() for path in folder.root.rglob("*.jsonl"))
    assert KEY not in caplog.text + written

    server.behaviour = good
    before = sum(server.count.values())
    again = ask(folder, server, pool)  # asks for the failed ones only
    assert (len(again.rows), len(again.failed)) == (7, 0)
    assert sum(server.count.values()) - before == 5


def test_a_build_that_was_killed_asks_for_the_rest_only(folder: DatasetFolder, server: Server, pool: Any) -> None:
    ask(folder, server, pool)
    whole = folder.reasoning().read_bytes()
    lines = folder.reasoning_journal().read_bytes().splitlines(keepends=True)
    folder.reasoning_journal().write_bytes(b"".join(lines[:4]) + lines[4][:60])
    folder.reasoning().unlink()
    server.count.clear()
    ask(folder, server, pool)
    assert sorted(server.count.values()) == [1] * 3
    assert folder.reasoning().read_bytes() == whole
    assert len(read_lines(folder.reasoning_journal())) == 7

    server.count.clear()
    ask(folder, server, pool, concurrency=1, timeout_s=4.0, attempts=1)
    assert not server.count
    changed = [pool[0] | {"gt_end": 5.0}, pool[1] | {"gt_end": 5.0}, *pool[2:]]  # the second is a wrong pair
    ask(folder, server, changed)
    assert dict(server.count) == {"query 0": 1}
    ask(folder, server, changed, temperature=0.1)
    assert sum(server.count.values()) == 1 + 7


def test_too_many_failures_stop_the_build(folder: DatasetFolder, server: Server, pool: Any) -> None:
    server.behaviour = lambda query, number: good(query, number) if query == "query 6" else said("nothing")
    with pytest.raises(
        BuildError,
        match=r"6 of 7 pairs got no .* \(p0: .*; p1: .*; p2: [^;]*\), .*reasoning_failures",
    ):
        ask(folder, server, pool, max_failed_fraction=0.5)
    assert not folder.reasoning().exists()
    assert len(read_lines(folder.reasoning_failures())) == 6
    assert len(read_lines(folder.reasoning_journal())) == 1


def test_a_server_that_refuses_or_is_not_there_stops_the_build(
    folder: DatasetFolder, server: Server, pool: Any, caplog: pytest.LogCaptureFixture
) -> None:
    server.behaviour = lambda query, number: (401, {"error": {"message": f"bad key {KEY}"}})
    with caplog.at_level(logging.DEBUG), pytest.raises(BuildError, match=r"answered 401 .*key_file") as refused:
        ask(folder, server, pool)
    assert KEY not in str(refused.getrepr(showlocals=False)) + caplog.text
    with pytest.raises(BuildError, match=r"127.0.0.1:9/v1 cannot be reached"):
        ask(folder, server, pool, url="http://127.0.0.1:9/v1", retries=0)
    with pytest.raises(BuildError, match=r"key_file=.*missing does not exist"):
        ask(folder, server, pool, key_file=folder.root / "missing")
    (folder.root.parent / "key").write_text("\n")
    with pytest.raises(BuildError, match=r"key_file=.*key is empty"):
        ask(folder, server, pool)


def test_a_teacher_that_lacks_its_settings_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match=r"data.teacher: .*needs data.teacher.model and data.teacher.url"):
        load_config(None, ["data.teacher.kind=openai"])
