"""The one shape of every refusal, also of a fault of the server's own."""

import json

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from pipelines.serve.gateway.faults import CODES, errors, handle_faults, openai_error
from pipelines.serve.gateway.stream import ApiError


@pytest.fixture
def client() -> TestClient:
    app = FastAPI()
    handle_faults(app)

    @app.get("/v1/broken")
    def broken() -> None:
        raise KeyError("/home/somebody/secret")

    @app.get("/v1/models")
    def busy() -> None:
        raise ApiError(429, "busy", "later", 2)

    return TestClient(app, raise_server_exceptions=False)


def test_a_fault_of_the_server_is_told_without_its_details(client: TestClient) -> None:
    answer = client.get("/v1/broken")
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    assert "secret" not in answer.text


def test_routes_of_openai_have_its_shape(client: TestClient) -> None:
    answer = client.get("/v1/models")
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "2")
    assert answer.json()["error"] == {"message": "later", "type": "rate_limit_error", "param": None, "code": "busy"}
    kinds = {status: openai_error(ApiError(status, "c", "m"))["error"]["type"] for status in (400, 401, 404, 503)}
    assert kinds == {
        400: "invalid_request_error", 401: "authentication_error", 404: "invalid_request_error", 503: "server_error",
    }  # fmt: skip


def test_every_code_is_described_with_its_status() -> None:
    described = errors(*CODES, also={"unknown_video": 422})
    assert {status for status, _ in CODES.values()} == set(described)
    assert {"invalid_request", "unknown_video"} <= set(described[422]["content"]["application/json"]["examples"])
    json.dumps({status: told["content"] for status, told in described.items()})
