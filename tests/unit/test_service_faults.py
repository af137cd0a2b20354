"""The one shape of every refusal, also of a fault of the server's own."""

import json
import pickle

import pytest
from fastapi import FastAPI
from ray.exceptions import RayTaskError
from starlette.testclient import TestClient

from pipelines.serve.gateway.answers import errors, handle_faults, openai_error
from pipelines.serve.gateway.faults import CODES, ApiError
from vsr1.retrieval.request import RetrievalError
from vsr1.video.clips import ClipError

OF_PARTS = {
    "clip": ClipError("/home/somebody/secret has no such file"),
    "retrieval": RetrievalError("no shard answers"),
    "refusal": ApiError("duplicate_video", "the corpus has it"),
    "fault": TypeError("secret"),
}


@pytest.fixture
def client() -> TestClient:
    app = FastAPI()
    handle_faults(app)

    @app.get("/v1/broken")
    def broken() -> None:
        raise KeyError("/home/somebody/secret")

    @app.get("/v1/models")
    def busy() -> None:
        raise ApiError("busy", "later", 2)

    @app.get("/v1/videos/{name}")
    def part(name: str) -> None:
        raise RayTaskError("library", "traceback", OF_PARTS[name]).as_instanceof_cause()

    return TestClient(app, raise_server_exceptions=False)


def test_a_fault_of_the_server_is_told_without_its_details(client: TestClient) -> None:
    answer = client.get("/v1/broken")
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    assert "secret" not in answer.text


@pytest.mark.parametrize(
    ("name", "status", "code", "message"),
    [
        ("clip", 404, "unknown_video", "no such video"),
        ("retrieval", 503, "retrieval_failed", "no shard answers"),
        ("refusal", 409, "duplicate_video", "the corpus has it"),
        ("fault", 500, "internal_error", "its log has it"),
    ],
)
def test_what_another_process_raises_is_told_as_it_was_raised(
    client: TestClient, name: str, status: int, code: str, message: str
) -> None:
    answer = client.get(f"/v1/videos/{name}")
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (status, code)
    assert message in error["message"] and "secret" not in answer.text


def test_routes_of_openai_have_its_shape(client: TestClient) -> None:
    answer = client.get("/v1/models")
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "2")
    assert answer.json()["error"] == {"message": "later", "type": "rate_limit_error", "param": None, "code": "busy"}
    codes = ("unreadable_body", "unknown_key", "unknown_route", "stopping")
    refusals = [ApiError(code) for code in codes]
    kinds = {refusal.status: openai_error(refusal)["error"]["type"] for refusal in refusals}
    assert kinds == {
        400: "invalid_request_error", 401: "authentication_error", 404: "invalid_request_error", 503: "server_error",
    }  # fmt: skip


def test_every_code_is_described_with_its_status() -> None:
    described = errors(*CODES, also={"unknown_video": 422})
    assert {status for status, _ in CODES.values()} == set(described)
    assert {"invalid_request", "unknown_video"} <= set(described[422]["content"]["application/json"]["examples"])
    json.dumps({status: response["content"] for status, response in described.items()})
    assert 422 not in errors(*CODES, also={"unknown_video": 422}, unprocessable=400)


def test_a_refusal_travels_between_processes() -> None:
    refusal = ApiError("unknown_video", "no 'a'", 3, status=422)
    copy = pickle.loads(pickle.dumps(refusal))
    assert (copy.code, str(copy), copy.retry_after_s, copy.status) == ("unknown_video", "no 'a'", 3, 422)
