"""The doors of the served agent, and what they hold against: links, resumed streams, OpenAI's API, MCP, metrics, the
description of the API and its examples, and requests that mean no good. The agents are scripted."""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import httpx2
import jsonschema
import openai
import psutil
import pytest
import ray
from mcp import Client, StdioServerParameters
from playwright.sync_api import Browser, expect

from pipelines.serve.gateway.faults import CODES

from .scripted import FOLLOWED, LATE, LATE_SPAN
from .served import LIMITS, ORIGIN, Served

SECRET_QUERY = "a query that nobody else should ever read"


@pytest.fixture(scope="module")
def served(keyed: Served) -> Served:
    return keyed


@pytest.fixture
def http(served: Served) -> Iterator[httpx2.Client]:
    """With the key."""
    with httpx2.Client(base_url=served.url, headers={"X-API-Key": served.key}, timeout=60) as client:
        yield client


def test_a_moment_has_its_picture_and_a_link_to_the_page(
    served: Served, http: httpx2.Client, late: str, browser: Browser
) -> None:
    [moment] = served.search(query=LATE)[1]["moments"]
    assert http.get(moment["thumbnail_url"]).headers["content-type"] == "image/jpeg"
    page = browser.new_page()
    page.add_init_script(f"sessionStorage.setItem('key', '{served.key}')")
    page.goto(served.url + moment["deep_link"])
    expect(page.locator("#answer h2")).to_contain_text(late)
    expect(page.locator("#answer .strip img").first).to_have_js_property("naturalWidth", 64)
    expect(page.locator("#answer video")).to_have_js_property("videoWidth", 64)
    assert str(page.locator("#answer video").get_attribute("src")).startswith("blob:"), "a player sends no key"
    expect(page.get_by_label("What happens in it?")).to_have_value(LATE)
    assert page.locator("#turns-list .card").count() == 0, "the link shows the moment and searches no more"
    page.close()


def test_the_page_shows_ids_and_queries_as_text(served: Served, browser: Browser) -> None:
    page = browser.new_page()
    page.add_init_script(f"sessionStorage.setItem('key', '{served.key}')")
    page.goto(f"{served.url}/#corpus=toy&q=<img src=x onerror=window.bad=1>&v=<img src=x onerror=window.bad=1>&t=1-2")
    expect(page.locator("#answer h2")).to_contain_text("<img src=x")
    assert page.evaluate("window.bad") is None
    assert "default-src 'none'" in httpx2.get(served.url).headers["content-security-policy"]
    page.close()


def test_a_lost_stream_goes_on_where_it_broke_off(served: Served, http: httpx2.Client, late: str) -> None:
    def numbered(answer: httpx2.Response, most: int = 10**6) -> Iterator[tuple[int, dict[str, Any]]]:
        for message in httpx2.EventSource(answer):
            yield int(message.id), json.loads(message.data)
            if int(message.id) == most:
                return

    with http.stream("POST", "/v1/search", json={"query": LATE, "stream": True}) as answer:
        path = f"/v1/search/{answer.headers['x-search-id']}/events"
        events = list(numbered(answer, 3))
    with http.stream("GET", path, headers={"Last-Event-ID": "3"}) as answer:
        events += numbered(answer)
    assert [number for number, _ in events] == list(range(1, len(events) + 1))
    assert events[-1][1]["type"] == "done" and events[-1][1]["result"]["moments"]
    with http.stream("GET", path) as answer:
        assert list(numbered(answer)) == events
    last = len(events)
    assert http.get(path, headers={"Last-Event-ID": str(last)}).status_code == 204
    assert http.get(path, headers={"Last-Event-ID": str(last + 1)}).json()["error"]["code"] == "invalid_request"
    assert httpx2.get(served.url + path).status_code == 401
    other = httpx2.get(served.url + path, headers={"X-API-Key": served.other_key})
    assert (other.status_code, other.json()["error"]["code"]) == (404, "unknown_search")


def test_a_search_that_nobody_wants_ends(served: Served, http: httpx2.Client) -> None:
    def gone() -> float:
        return served.metric("vsr1_searches_total").get('{result="search_gone"}', 0)

    before, queries = gone(), [f"{FOLLOWED}is in no video, {number}" for number in range(4)]
    with ExitStack() as streams:
        for query in queries:
            body = {"query": query, "stream": True, "max_turns": 16}
            answer = streams.enter_context(http.stream("POST", "/v1/search", json=body))
            search = f"/v1/search/{answer.headers['x-search-id']}"
            assert http.delete(search).status_code == 204
        answer = http.get(f"{search}/events")
        assert (answer.status_code, answer.json()["error"]["code"]) == (410, "search_gone")
    assert gone() == before + len(queries)
    with ExitStack() as streams:  # a chat cannot be resumed: it ends with its reader
        for query in queries:
            chat = {"model": "vsr1", "messages": [{"role": "user", "content": query}], "stream": True, "max_turns": 16}
            streams.enter_context(http.stream("POST", "/v1/chat/completions", json=chat))
    served.until_idle()
    assert gone() > before + len(queries)


def test_the_client_of_openai(served: Served, late: str) -> None:
    client = openai.OpenAI(base_url=f"{served.url}/v1", api_key=served.key, max_retries=0)
    [model] = [model.id for model in client.models.list()]
    asked: Any = [{"role": "system", "content": "be brief"}, {"role": "user", "content": LATE}]
    answer = client.chat.completions.create(model=model, messages=asked, temperature=0.7, max_tokens=5)
    content = answer.choices[0].message.content or ""
    start, end = LATE_SPAN
    assert f"{late}, from {start:.1f} s to {end:.1f} s: {served.url}/#q=" in content
    assert answer.model_extra["search"]["moments"][0]["video_id"] == late  # type: ignore[index]
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens  # type: ignore

    options: Any = {"include_usage": True}
    chunks = list(client.chat.completions.create(model=model, messages=asked, stream=True, stream_options=options))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == content
    assert "".join(getattr(c.choices[0].delta, "reasoning_content", "") for c in chunks if c.choices)
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].usage == answer.usage

    def refused(error: type[openai.APIStatusError], by: openai.OpenAI = client, **changed: Any) -> Any:
        with pytest.raises(error) as told:
            by.chat.completions.create(**{"model": model, "messages": asked} | changed)
        return told.value

    assert refused(openai.NotFoundError, model="gpt-4o").code == "model_not_found"
    assert refused(openai.BadRequestError, messages=[{"role": "user", "content": " "}]).type == "invalid_request_error"
    assert "tools" in str(refused(openai.BadRequestError, tools=[{"type": "function", "function": {"name": "f"}}]))
    assert refused(openai.BadRequestError, n=2).code == "invalid_request"
    assert refused(openai.BadRequestError, extra_body={"search_top_k": 10**9}).code == "invalid_request"
    nobody = openai.OpenAI(base_url=f"{served.url}/v1", api_key="nothing", max_retries=0)
    assert refused(openai.AuthenticationError, nobody).code == "unknown_key"
    with pytest.raises(openai.AuthenticationError):
        nobody.models.list()


def test_the_mcp_tool(served: Served, late: str, tmp_path: Path) -> None:
    (tmp_path / "key").write_text(served.key)
    tool = str(Path(sys.executable).parent / "vsr1")
    args = ["mcp", "--url", served.url, "--key-file", str(tmp_path / "key")]
    started = StdioServerParameters(command=tool, args=args, env=dict(os.environ))

    async def ask() -> None:
        async with Client(started) as client:
            [described] = (await client.list_tools()).tools
            assert described.name == "search_videos" and "query" in described.input_schema["required"]
            answer = await client.call_tool("search_videos", {"query": LATE})
            [moment] = answer.structured_content["moments"]  # type: ignore[index]
            assert (moment["video_id"], moment["start"], moment["end"]) == (late, *LATE_SPAN)
            assert moment["deep_link"].startswith(f"{served.url}/#")
            refused = await client.call_tool("search_videos", {"query": "a ring", "corpus": "nowhere"})
            assert refused.is_error and "there are toy" in refused.content[0].text  # type: ignore[union-attr]
            long = asyncio.create_task(client.call_tool("search_videos", {"query": "nothing like it", "max_turns": 16}))
            for arguments in ({}, {"query": 7, "max_turns": "many"}):  # while that goes on
                wrong = await client.call_tool("search_videos", arguments)
                assert wrong.is_error and "query" in wrong.content[0].text  # type: ignore[union-attr]
            assert len((await client.list_tools()).tools) == 1
            unknown = await client.call_tool("search_everything", {})
            assert unknown.is_error and "search_everything" in unknown.content[0].text  # type: ignore[union-attr]
            assert not (await long).is_error

    with ThreadPoolExecutor() as thread:  # the browser's own loop runs in this one
        thread.submit(asyncio.run, ask()).result()


def test_metrics(served: Served, http: httpx2.Client, late: str) -> None:
    def counts() -> tuple[dict[str, float], ...]:
        return tuple(
            served.metric(name) for name in ("vsr1_searches_total", "vsr1_requests_total", "vsr1_tokens_total")
        )

    before, answer = counts(), served.search(query=LATE)[1]
    http.get("/v1/videos/secret-id")
    http.get(f"/{served.key}")
    searches, requests, tokens = counts()
    assert searches['{result="matched"}'] == before[0].get('{result="matched"}', 0) + 1
    text = '{kind="text"}'
    assert tokens[text] - before[2].get(text, 0) == answer["usage"]["text_tokens"]
    assert requests['{method="GET",route="/v1/videos/{video_id}",status="404"}'] >= 1
    assert requests['{method="GET",route="none",status="404"}'] >= 1
    told = http.get("/metrics")
    assert told.headers["content-type"].startswith("text/plain")
    assert "vsr1_search_turns_bucket" in told.text and "vsr1_request_seconds_bucket" in told.text
    assert not [secret for secret in (served.key, LATE, "secret-id") if secret in told.text]


def test_every_example_of_the_description_works(served: Served, http: httpx2.Client) -> None:
    document = http.get("/openapi.json").json()

    def example(schema: dict[str, Any]) -> Any:
        return (schema.get("examples") or [schema.get("default")])[0]

    checked = 0
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            if (path, method) == ("/v1/videos/{video_id}", "delete"):
                continue  # other tests need the video
            given = {p["name"]: example(p["schema"]) for p in operation.get("parameters", []) if p["in"] != "header"}
            body = None
            if "requestBody" in operation:
                schema = operation["requestBody"]["content"]["application/json"]["schema"]
                name = schema.get("$ref", "").rpartition("/")[2]
                body = example(document["components"]["schemas"][name] if name else schema)
            query = {name: value for name, value in given.items() if f"{{{name}}}" not in path and value is not None}
            answer = http.request(method, path.format(**given), params=query, json=body)
            status = 404 if "{search_id}" in path else 403 if (path, method) == ("/v1/videos", "post") else 200
            assert answer.status_code == status, (path, answer.text)
            described = operation["responses"][str(status)]["content"]
            kind = answer.headers["content-type"].partition(";")[0]
            assert kind in described, path
            if kind == "application/json":
                schema = {**described[kind]["schema"], "components": document["components"]}
                jsonschema.validate(answer.json(), schema)
            for refusal in operation["responses"].values():
                for one in refusal.get("content", {}).get("application/json", {}).get("examples", {}).values():
                    assert one["value"]["error"]["code"] in CODES
                    checked += 1
    assert checked > 50


def test_made_up_requests(served: Served, tmp_path: Path) -> None:
    schemathesis = str(Path(sys.executable).parent / "schemathesis")
    options = ["--max-examples", "8", "--seed", "1", "--no-color"]  # one thread: 3.11's `ast.parse` fails in several
    key = ["--header", f"X-API-Key: {served.key}"]
    config = ["--config-file", str(Path(__file__).parents[2] / "schemathesis.toml")]
    command = [schemathesis, *config, "run", f"{served.url}/openapi.json", *key, *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr


JSON = {"content-type": "application/json"}
DEEP = "[" * 60_000


@pytest.mark.parametrize(
    ("method", "path", "sent", "status", "code"),
    [
        ("GET", "/v2/search", {}, 404, "unknown_route"),
        ("PUT", "/v1/search", {}, 405, "wrong_method"),
        ("POST", "/v1/search", {"data": {"query": "a ring"}}, 415, "wrong_content_type"),
        ("POST", "/v1/search", {"content": "{", "headers": JSON}, 422, "invalid_request"),
        ("POST", "/v1/search", {"content": DEEP, "headers": JSON}, 400, "unreadable_body"),
        ("POST", "/v1/search", {"content": b'{"query": "\xff"}', "headers": JSON}, 400, "unreadable_body"),
        ("POST", "/v1/search", {"content": '{"query":"a","threshold":NaN}', "headers": JSON}, 422, "invalid_request"),
        ("POST", "/v1/search", {"content": '{"query":"a\\ud800"}', "headers": JSON}, 422, "invalid_request"),
        ("POST", "/v1/search", {"json": {"query": "a", "top_k": 10**30}}, 422, "invalid_request"),
        ("POST", "/v1/search", {"json": {"query": "0" * 2_000}}, 422, "query_too_long"),
        ("POST", "/v1/search", {"json": {"query": "0" * 2_000, "stream": True}}, 422, "query_too_long"),
        ("POST", "/v1/search", {"json": {"query": "a", "max_turns": "2"}}, 422, "invalid_request"),
        ("POST", "/v1/search", {"json": {"query": "a" * 70_000}}, 413, "body_too_large"),
        ("POST", "/v1/search", {"content": iter([b"x" * 40_000] * 2), "headers": JSON}, 413, "body_too_large"),
        ("POST", "/retrieve", {"json": {"queries": ["a"], "vectors": [[1.0]]}}, 422, "invalid_request"),
        ("POST", "/retrieve", {"json": {"queries": ["a"], "exclude_ids": [["no"]]}}, 422, "invalid_request"),
        ("POST", "/retrieve?corpus=no", {"json": {"queries": ["a"]}}, 404, "unknown_corpus"),
        ("POST", "/retrieve", {"json": {"vectors": [[0.5] * 40_000]}}, 413, "body_too_large"),
        ("GET", "/v1/corpora", {"headers": {"x-padding": "a" * 40_000}}, 431, "headers_too_large"),
        ("GET", "/v1/videos/test_0001/thumbnail?t=nan", {}, 422, "invalid_request"),
        ("GET", "/v1/videos/..%2f..%2fetc%2fpasswd", {}, 404, "unknown_video"),
        ("GET", "/v1/videos/..%5c..%5cetc%5cpasswd", {}, 404, "unknown_video"),
        ("GET", "/v1/videos/%2e%2e/thumbnail", {}, 404, "unknown_video"),
        ("GET", "/v1/videos/a%00b", {}, 404, "unknown_video"),
        ("GET", "/v1/videos/a%0d%0aX-Injected:%20yes", {}, 404, "unknown_video"),
        ("GET", "/page.js%2f..%2f..%2fgateway.py", {}, 404, "unknown_route"),
        ("GET", "/page.py", {}, 422, "invalid_request"),
    ],
)
def test_bad_requests_are_told_so(
    http: httpx2.Client, method: str, path: str, sent: dict[str, Any], status: int, code: str
) -> None:
    answer = http.request(method, path, **sent)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text
    assert "x-injected" not in answer.headers
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_slow_bodies_and_slow_readers_hold_nothing(served: Served, http: httpx2.Client, late: str) -> None:
    head = f"POST /v1/search HTTP/1.1\r\nHost: x\r\nX-API-Key: {served.key}\r\nContent-Type: application/json\r\n"
    with served.raw(head + "Content-Length: 100\r\n\r\n{") as slow:
        began = time.monotonic()
        told = slow.recv(10_000).decode()
        assert " 408 " in told.splitlines()[0] and "connection: close" in told.lower()
        assert time.monotonic() - began >= LIMITS["body_limit_s"]
    body = json.dumps({"query": LATE, "stream": True})
    before = served.metric("vsr1_searches_total")
    with served.raw(f"{head}Content-Length: {len(body)}\r\n\r\n{body}"):
        time.sleep(0.5)
        served.until_idle()
    matched = '{result="matched"}'
    assert served.metric("vsr1_searches_total")[matched] == before.get(matched, 0) + 1, "it ended, though nobody read"


def test_every_answer_has_the_id_of_its_request(served: Served, http: httpx2.Client) -> None:
    stream = {"json": {"query": "a ring", "stream": True, "max_turns": 1}}
    no_key, long, part = {"X-API-Key": "no"}, {"x-padding": "a" * 40_000}, {"Range": "bytes=0-9"}
    beyond, film = {"Range": "bytes=99999999-"}, "/v1/videos/test_0001/file"
    told: list[tuple[str, str, dict[str, Any]]] = [
        ("GET", "/healthz", {}), ("HEAD", "/", {}), ("GET", "/page.js", {}), ("GET", "/metrics", {}),
        ("GET", "/v2/search", {}), ("PUT", "/v1/search", {}), ("POST", "/v1/search", {"content": "x"}),
        ("GET", "/v1/corpora", {"headers": no_key}), ("GET", "/v1/corpora", {"headers": long}),
        ("POST", "/v1/search", {"json": {"query": "a" * 70_000}}), ("POST", "/v1/search", {"json": {}}),
        ("POST", "/v1/search", stream), ("POST", "/v1/search", {"json": {"query": "0" * 2000}}),
        ("GET", film, {"headers": part}), ("GET", film, {"headers": beyond}),
    ]  # fmt: skip
    ids = []
    for method, path, sent in told:
        answer = http.request(method, path, **sent)
        [one] = answer.headers.get_list("x-request-id")
        ids.append(one)
    assert len(set(ids)) == len(told) and all(ids)
    assert http.get("/v2/x", headers={"X-Request-Id": "3f-a_1"}).headers["x-request-id"] == "3f-a_1"
    with served.raw("GET /healthz HTTP/1.1\r\nHost: x\r\nX-Request-Id: a b\r\nConnection: close\r\n\r\n") as connection:
        assert "x-request-id: a b" not in connection.makefile().read().lower()


def test_a_client_of_http_1_0_gets_its_answers_without_chunks(served: Served) -> None:
    def ask(path: str, body: str = "") -> tuple[str, str]:
        head = f"{'POST' if body else 'GET'} {path} HTTP/1.0\r\nX-API-Key: {served.key}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n" if body else ""
        with served.raw(f"{head}\r\n{body}") as connection:
            fields, _, content = connection.makefile(newline="").read().partition("\r\n\r\n")
        return fields.lower(), content

    fields, content = ask("/v1/search", json.dumps({"query": "a ring", "stream": True, "max_turns": 1}))
    assert "transfer-encoding" not in fields and "connection: close" in fields
    blocks = [block for block in content.split("\n\n") if "data: " in block]
    assert blocks[-1].splitlines()[1] == "event: done" and json.loads(blocks[-1].partition("data: ")[2])
    fields, content = ask("/v1/corpora")
    assert f"content-length: {len(content)}" in fields and json.loads(content)[0]["name"] == "toy"


def test_only_the_sites_that_are_named_may_ask(http: httpx2.Client) -> None:
    def allowed(origin: str) -> str | None:
        wanted = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        return http.options("/v1/search", headers=wanted).headers.get("access-control-allow-origin")

    assert allowed(ORIGIN) == ORIGIN
    assert allowed("https://stranger.example") is None
    assert "access-control-allow-origin" not in http.get("/v1/corpora", headers={"Origin": "null"}).headers


def test_the_ports_of_the_replicas_want_the_token_of_ray(served: Served) -> None:
    replicas = [p for p in psutil.Process().children(recursive=True) if p.name().startswith("ray::ServeReplica")]
    listening = [c for p in replicas for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN]
    codes = []
    for port in [c.laddr.port for c in listening if c.laddr.ip == "::"]:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel, pytest.raises(grpc.RpcError) as refused:
            channel.unary_unary("/ray.serve.ASGIService/HandleRequest")(b"", timeout=20)
        codes.append(refused.value.code())
    assert codes.count(grpc.StatusCode.UNAUTHENTICATED) == len(replicas) == 3
    assert set(codes) <= {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNIMPLEMENTED}  # ports of Ray's core


def test_no_log_has_a_key_or_a_query(served: Served, http: httpx2.Client) -> None:
    served.search(query=SECRET_QUERY, max_turns=1)
    served.search(query=SECRET_QUERY, exclude_ids=["nowhere"])
    http.get("/v1/videos/nowhere", params={"corpus": SECRET_QUERY})
    logs = Path(ray._private.worker._global_node.get_session_dir_path()) / "logs"
    texts = {path: path.read_bytes() for path in logs.rglob("*") if path.is_file()}
    assert any(b"gateway" in path.name.encode() for path in texts)
    for secret in (served.key.encode(), SECRET_QUERY.encode()):
        assert not [path.name for path, text in texts.items() if secret in text]
