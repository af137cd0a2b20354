"""A chat server on this machine, real HTTP, that answers as a test says."""

import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, Any]  # status, and the body or its text


def said(text: str | None, finish_reason: str = "stop") -> Reply:
    choice = {"index": 0, "finish_reason": finish_reason, "message": {"role": "assistant", "content": text}}
    usage = {"prompt_tokens": 321, "completion_tokens": 5, "total_tokens": 326}
    return 200, {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [choice],
        "usage": usage,
    }


class Server(ThreadingHTTPServer):
    """Answers with `behaviour(query, how many times it was asked before)` and keeps what it was asked.

    A query is what a request's first text says after the given pattern.
    """

    daemon_threads = True

    def __init__(self, behaviour: Callable[[str, int], Reply], query: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.behaviour, self.query = behaviour, query
        self.asked: list[dict[str, Any]] = []
        self.count: Counter[str] = Counter()
        self.running = self.most_running = 0
        self.lock = threading.Lock()


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        query = re.search(self.server.query, request["messages"][1]["content"][0]["text"])[1]
        with self.server.lock:
            self.server.asked.append(request | {"path": self.path, "key": self.headers["Authorization"]})
            number = self.server.count[query]
            self.server.count[query] += 1
            self.server.running += 1
            self.server.most_running = max(self.server.most_running, self.server.running)
        status, body = self.server.behaviour(query, number)
        with self.server.lock:
            self.server.running -= 1
        payload = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.send_header("Retry-After", "0.05")
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, *args: Any) -> None:
        """Quiet."""


@contextmanager
def running_server(behaviour: Callable[[str, int], Reply], query: str) -> Iterator[Server]:
    running = Server(behaviour, query)
    thread = threading.Thread(target=running.serve_forever)
    thread.start()
    yield running
    running.shutdown()
    thread.join()
    running.server_close()
