"""What stands in front of Serve's proxy, around a small application on a real HTTP server."""

import socket
import threading
import time
from collections.abc import Iterator

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from pipelines.serve.front import middlewares


def stream(request: Request) -> Response:
    return StreamingResponse(iter([b"one,", b"two"]), media_type="text/event-stream")


def whole(request: Request) -> Response:
    return PlainTextResponse(request.headers.get("x-request-id", "none"))


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    app = Starlette(routes=[Route("/stream", stream), Route("/whole", whole)])
    for middleware in middlewares():
        app = middleware.cls(app, *middleware.args, **middleware.kwargs)
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_config=None, http="httptools"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield listening.getsockname()[1]
    server.should_exit = True
    thread.join()


def ask(port: int, head: str) -> tuple[str, str]:
    """Return head and body of the answer to a request, up to the end of the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(f"{head}\r\n\r\n".encode("latin-1"))
        answer = b""
        while piece := connection.recv(4096):
            answer += piece
    fields, _, body = answer.decode().partition("\r\n\r\n")
    return fields.lower(), body


@pytest.mark.parametrize("more", ["", "\r\nConnection: keep-alive"])
def test_a_client_of_http_1_0_gets_a_stream_without_chunks(port: int, more: str) -> None:
    fields, body = ask(port, f"GET /stream HTTP/1.0{more}")
    assert "transfer-encoding" not in fields and "connection: close" in fields
    assert body == "one,two"


def test_answers_of_known_length_are_as_they_were(port: int) -> None:
    fields, body = ask(port, "GET /whole HTTP/1.0")
    assert "content-length: 4" in fields and "transfer-encoding" not in fields and body == "none"
    fields, body = ask(port, "HEAD /stream HTTP/1.0")
    assert "200 ok" in fields and body == ""


def test_http_1_1_has_its_chunks(port: int) -> None:
    fields, body = ask(port, "GET /stream HTTP/1.1\r\nHost: x\r\nConnection: close")
    assert "transfer-encoding: chunked" in fields and body == "4\r\none,\r\n3\r\ntwo\r\n0\r\n\r\n"


@pytest.mark.parametrize("sent", ["a b", "\xe9", "x" * 129, ""])
def test_an_id_that_no_log_should_hold_is_not_taken(port: int, sent: str) -> None:
    assert ask(port, f"GET /whole HTTP/1.0\r\nX-Request-Id: {sent}")[1] == "none"
    assert ask(port, "GET /whole HTTP/1.0\r\nX-Request-Id: 3f-a_1")[1] == "3f-a_1"
