"""A build whose reasoning comes from a teacher: what it needs, and what becomes of answers that cannot be used."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from pipelines.data.build import BuildError
from vsr1.formats.atomic import read_lines
from vsr1.formats.dataset import DatasetFolder

from .builds import build

TRAIN = 6  # videos of `corpus`


def test_training_records_need_a_teacher_and_that_shows_before_anything_is_decoded(fresh: DatasetFolder) -> None:
    fresh.events("train").unlink()
    with pytest.raises(BuildError, match="kind=rules knows the toy corpus only"):
        build(fresh.root)
    assert not fresh.clips("test").exists()
    assert build(fresh.root, splits=["test"]).records == {}


class Teacher(BaseHTTPRequestHandler):
    """An OpenAI-compatible server with one answer for right videos and none for wrong ones."""

    def do_POST(self) -> None:
        words = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"][1]["content"][0]["text"]
        message = {"role": "assistant", "content": "Reasoning: as it is" if "begins at" in words else "Reasoning:"}
        choices = [{"index": 0, "finish_reason": "stop", "message": message}]
        payload = json.dumps({"id": "", "object": "chat.completion", "created": 0, "model": "", "choices": choices})
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(payload.encode())

    def log_message(self, *args: Any) -> None:
        """Quiet."""


def test_a_corpus_without_events_is_built_with_a_model_as_teacher(fresh: DatasetFolder) -> None:
    fresh.events("train").unlink()
    with ThreadingHTTPServer(("127.0.0.1", 0), Teacher) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        teacher = {"kind": "openai", "model": "m", "url": f"http://127.0.0.1:{server.server_port}", "attempts": 1}
        with pytest.raises(BuildError, match=rf"{TRAIN} of {2 * TRAIN} pairs got no .*the reasoning is empty"):
            build(fresh.root, splits=["train"], teacher=teacher)
        report = build(fresh.root, splits=["train"], teacher=teacher | {"max_failed_fraction": 0.5})
        server.shutdown()
        thread.join()
    assert report.records["sft_records"]["rows"] == TRAIN
    records = json.loads(fresh.sft_records().read_text())
    assert {record["meta"]["gold_label"] for record in records} == {"pos"}
    assert records[0]["messages"][2]["content"].startswith("<think> as it is </think> <answer>matched</answer>")
    assert len(read_lines(fresh.top1_pool())) == 2 * TRAIN
