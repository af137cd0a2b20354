"""The gateway in this process: its HTTP, over a library and agents that do what a test says."""

import asyncio
import errno
import json
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from ray.exceptions import RayTaskError

from pipelines.serve.gateway import metrics
from pipelines.serve.gateway.app import build_app
from pipelines.serve.gateway.faults import LONGEST_MESSAGE, ApiError
from pipelines.serve.gateway.gateway import Gateway
from pipelines.serve.gateway.keys import add_key
from pipelines.serve.gateway.schema import Video
from pipelines.serve.gateway.words import PromptWords
from vsr1.episode.environment import PromptError
from vsr1.retrieval.request import SearchTimeoutError, UnknownVideoError
from vsr1.settings.serving import ServeConfig

TOY_POLICY = Path(__file__).parents[2] / "checkpoints" / "toy" / "sft"
USAGE = {"prompt_tokens": 1, "text_tokens": 1, "latent_tokens": 1, "seconds": 0.1}
RESULT = {
    "id": "0" * 32, "status": "not_found", "query": "a ring", "corpus": "toy", "moments": [], "turns": [],
    "usage": USAGE, "model": "vsr1", "weight_version": 0, "index_version": None,
}  # fmt: skip
DONE = {"type": "done", "result": RESULT}


class Handle:
    """A handle's method: what it gets, `answer` makes of it."""

    def __init__(self, answer: Callable[..., Any]) -> None:
        self._answer = answer

    async def remote(self, *args: Any) -> Any:
        return self._answer(*args)


class Agent:
    """The handle of an agent whose searches wait for `go`, and end in `last`."""

    def __init__(self) -> None:
        self.go, self.last = asyncio.Event(), dict(DONE)
        self.fault: Exception | None = None  # in place of the end
        self.go.set()
        self.bodies: list[Any] = []
        self.search = self

    def options(self, **options: Any) -> "Agent":
        return self

    def remote(self, search_id: str, body: Any, corpus: str) -> "Agent":
        self.bodies.append(body)
        return self

    def cancel(self) -> None:
        pass

    async def __aiter__(self) -> AsyncIterator[dict[str, Any]]:
        await self.go.wait()
        if self.fault:
            raise self.fault
        yield self.last


class Library:
    """The handle of a library with one film."""

    def __init__(self, film: Path) -> None:
        self.version, self.film = "1", film
        film.write_bytes(bytes(range(100)))
        ready = {"status": "ready", "progress": 1, "duration": 12.0}
        self.video = Handle(lambda corpus, name: Video(video_id=name, version=self.version, **ready))
        self.thumbnail = Handle(lambda *args: (b"picture", self.version))
        self.clip = Handle(lambda *args: (b"film", self.version))
        self.source = Handle(lambda *args: (str(self.film), "video/mp4", self.version))
        self.accept = Handle(lambda corpus, name, *rest: name)
        self.delete = Handle(lambda *args: None)


class Service:
    """A gateway as its clients see it."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.agent, self.library = Agent(), Library(folder / "film.mp4")
        values = {"corpora": {"toy": {"root": folder}}, "body_limit_s": 0.3} | settings
        words = {"vsr1": PromptWords(TOY_POLICY, "check this video", 1024)}
        self.gateway = Gateway(ServeConfig.model_validate(values), {"vsr1": self.agent}, self.library, words)  # type: ignore
        self.app = build_app(self.gateway)

    def client(self, **options: Any) -> httpx2.AsyncClient:
        transport = httpx2.ASGITransport(self.app, raise_app_exceptions=False)
        return httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000", **options)

    def ask(self, method: str, path: str, **options: Any) -> httpx2.Response:
        async def once() -> httpx2.Response:
            async with self.client() as client:
                return await client.request(method, path, **options)

        return asyncio.run(once())


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return Service(tmp_path)


def code(answer: httpx2.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def test_an_id_of_a_sub_folder_has_all_its_routes(service: Service) -> None:
    answer = service.ask("GET", "/v1/videos/a%2FIMG_0001")
    assert (answer.status_code, answer.json()["video_id"]) == (200, "a/IMG_0001")
    bodies = {"thumbnail": b"picture", "clip?start=0&end=2": b"film", "file": bytes(range(100))}
    for part, body in bodies.items():
        assert service.ask("GET", f"/v1/videos/a%2FIMG_0001/{part}").content == body
        assert service.ask("GET", f"/v1/videos/a/IMG_0001/{part}").content == body
    assert service.ask("DELETE", "/v1/videos/a%2FIMG_0001").status_code == 204


NAMES = {
    "a%2Fclip": "a/clip",
    "a/b%2Ffile": "a/b/file",
    "thumbnail": "thumbnail",
    "a%2Fthumbnail%2Fclip": "a/thumbnail/clip",
}


@pytest.mark.parametrize("sent", NAMES)
def test_an_id_that_ends_like_a_part_of_a_video_has_all_its_routes(service: Service, sent: str) -> None:
    deleted = []
    service.library.delete = Handle(lambda corpus, name: deleted.append(name))
    answer = service.ask("GET", f"/v1/videos/{sent}")
    assert (answer.status_code, answer.json()["video_id"]) == (200, NAMES[sent])
    assert service.ask("GET", f"/v1/videos/{sent}/thumbnail").content == b"picture"
    assert service.ask("DELETE", f"/v1/videos/{sent}").status_code == 204 and deleted == [NAMES[sent]]
    assert code(service.ask("DELETE", f"/v1/videos/{sent}/clip")) == (405, "wrong_method")
    assert service.ask("DELETE", f"/v1/videos/{sent}/clip").headers["allow"] == "GET, HEAD"


FOREIGN = [
    "films.example", "films.example:8000", "127.0.0.1.films.example", "[", "[::1", "a/#",
    "127.0.0.1:8000.films.example", "localhost:films.example", "films.example@127.0.0.1", "[films.example]",
    "[::1]films.example", "2130706433",
    "0x7f000001", "0177.0.0.1", "localhost.films.example", "[", "[::1", "evil/#",
]  # fmt: skip


def test_a_foreign_name_is_not_answered_where_there_are_no_keys(service: Service, tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    add_key(keys, "a", 10, 10)
    keyed = Service(tmp_path, key_file=keys)
    for host in FOREIGN:
        for method, path in (("GET", "/v1/videos/a"), ("DELETE", "/v1/videos/a"), ("GET", "/"), ("GET", "/healthz")):
            assert code(service.ask(method, path, headers={"Host": host})) == (421, "foreign_host"), host
        assert keyed.ask("GET", "/healthz", headers={"Host": host}).status_code == 200, host


OWN = ["127.0.0.1", "localhost:8000", "LOCALHOST.", "a.localhost", "[::1]:8000", "10.1.2.3", "films.example:80"]


def test_own_names_addresses_and_those_of_the_settings_are_answered(tmp_path: Path) -> None:
    service = Service(tmp_path, hosts=["Films.example"])
    for host in OWN:
        assert service.ask("GET", "/healthz", headers={"Host": host}).status_code == 200, host


def test_a_refused_type_is_told_whatever_the_size(service: Service) -> None:
    for path in ("/v1/videos", "/v1/search", "/v1/chat/completions", "/retrieve"):
        for kind in ("application/mp4", "multipart/form-data; boundary=x", "", "text/plain"):
            for content in (b"x", bytes(2 << 20)):
                answer = service.ask("POST", path, content=content, headers={"Content-Type": kind})
                assert answer.status_code == 415 and answer.headers["connection"] == "close", (path, kind)


def test_a_media_type_has_no_case(service: Service) -> None:
    for kind in ("video/mp4", "Video/MP4; a=b", "APPLICATION/OCTET-STREAM"):
        headers = {"Content-Type": kind}
        answer = service.ask("POST", "/v1/videos?video_id=a", content=bytes(2 << 20), headers=headers)
        assert (answer.status_code, answer.json()["video_id"]) == (202, "a")


def test_frames_and_films_are_kept_under_addresses_of_their_version(service: Service) -> None:
    for path in ("thumbnail?t=1", "clip?start=0&end=1", "file?x=1"):
        service.library.version = "1"
        place = f"/v1/videos/kitchen/{path}"
        kept = service.ask("GET", f"{place}&v=1")
        assert "immutable" in kept.headers["cache-control"] and kept.headers["etag"] == '"1"'
        asked = service.ask("GET", place)
        assert asked.headers["cache-control"] == "private, no-cache"
        again = service.ask("GET", place, headers={"If-None-Match": 'W/"0", W/"1"'})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", '"1"')
        service.library.version = "2"  # deleted, and another one added under the id
        assert service.ask("GET", place, headers={"If-None-Match": '"1"'}).status_code == 200
        assert code(service.ask("GET", f"{place}&v=1")) == (404, "unknown_video")


def test_ranges(service: Service) -> None:
    def part(wanted: str) -> tuple[int, bytes]:
        answer = service.ask("GET", "/v1/videos/a/file", headers={"Range": wanted})
        return answer.status_code, answer.content

    whole = bytes(range(100))
    assert part("bytes=0-1") == (206, whole[:2])
    assert part("bytes=-3") == (206, whole[-3:])
    assert part("bytes=50-") == (206, whole[50:])
    for ignored in ("items=0-1", "bytes=abc", "bytes", "bytes=5-4", "x"):
        assert part(ignored) == (200, whole), ignored
    several = service.ask("GET", "/v1/videos/a/file", headers={"Range": "bytes=0-1,98-"})
    assert several.status_code == 206 and several.headers["content-type"].startswith("multipart/byteranges")
    assert whole[:2] in several.content and whole[98:] in several.content and len(several.content) < 1000


def test_a_range_outside_the_file_is_refused_in_the_one_shape(service: Service) -> None:
    answer = service.ask("GET", "/v1/videos/a/file", headers={"Range": "bytes=99999999999-"})
    assert code(answer) == (416, "no_such_range") and answer.headers["content-range"] == "bytes */100"


def test_head_is_get_without_its_body(service: Service) -> None:
    for path in ("/", "/healthz", "/metrics", "/v1/models", "/v1/videos/a", "/v1/videos/a/file", "/openapi.json"):
        assert service.ask("HEAD", path).status_code == 200, path
    assert service.ask("HEAD", "/v1/videos/a/file").headers["content-length"] == "100"
    assert not [path for path, ways in service.ask("GET", "/openapi.json").json()["paths"].items() if "head" in ways]


def test_who_sends_nothing_does_not_hold_a_place(service: Service) -> None:
    async def play() -> None:
        async def silent() -> AsyncIterator[bytes]:
            yield b"abc"
            await asyncio.sleep(30)

        async def slow() -> AsyncIterator[bytes]:  # a byte now and then is nothing too
            for _ in range(100):
                yield b"a"
                await asyncio.sleep(0.02)

        async def steady() -> AsyncIterator[bytes]:
            for _ in range(8):
                yield bytes(1 << 16)
                await asyncio.sleep(0.1)

        headers = {"Content-Type": "video/mp4"}
        async with service.client() as client:
            for body in (silent, slow):
                answer = await client.post("/v1/videos?video_id=a", content=body(), headers=headers)
                assert code(answer) == (408, "too_slow")
            assert service.gateway.intake.receiving == 0
            answer = await client.post("/v1/videos?video_id=a", content=steady(), headers=headers)
            assert answer.status_code == 202, "longer than the limit, but it gets on"

    asyncio.run(play())


def test_a_full_disk_is_told_as_one(service: Service) -> None:
    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    def broken(*args: Any) -> None:
        raise OSError(errno.EIO, "/home/somebody/secret")

    def elsewhere(*args: Any) -> None:
        raise RayTaskError("library", "traceback", OSError(errno.EDQUOT, "quota")).as_instanceof_cause()

    for fault, told in ((full, (507, "disk_full")), (elsewhere, (507, "disk_full")), (broken, (500, "internal_error"))):
        service.library.delete = Handle(fault)
        answer = service.ask("DELETE", "/v1/videos/a")
        assert code(answer) == told and "secret" not in answer.text


def test_a_refusal_is_no_longer_than_a_person_reads(service: Service) -> None:
    for body in ({"query": "a", "corpus": "x" * 10**6}, {"query": "a", **{f"key{i}": 1 for i in range(50_000)}}):
        assert len(service.ask("POST", "/v1/search", json=body).content) < 2 * LONGEST_MESSAGE


def test_a_key_is_asked_for_as_http_says_and_described(tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    add_key(keys, "a", 10, 10)
    service = Service(tmp_path, key_file=keys)
    answer = service.ask("GET", "/v1/videos/a")
    assert code(answer) == (401, "unknown_key") and answer.headers["www-authenticate"] == "Bearer"
    description = service.ask("GET", "/openapi.json").json()
    assert description["components"]["securitySchemes"]["APIKeyHeader"]["name"] == "X-API-Key"
    assert (
        description["paths"]["/v1/search"]["post"]["security"]
        and "security" not in description["paths"]["/healthz"]["get"]
    )


def test_pictures_do_not_spend_the_searches_of_a_key(tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    headers = {"X-API-Key": add_key(keys, "a", 120, 16)}
    service = Service(tmp_path, key_file=keys)

    async def play() -> list[int]:
        async with service.client(headers=headers) as client:
            states = []
            for _ in range(10):
                states.append((await client.post("/v1/search", json={"query": "a ring"})).status_code)
                pictures = (client.get("/v1/videos/a/thumbnail") for _ in range(24))
                states += [answer.status_code for answer in await asyncio.gather(*pictures)]
            return states

    assert set(asyncio.run(play())) == {200}


def test_a_stream_speaks_before_its_search_has_a_place(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.serve.gateway.runs.REFUSAL_S", 0.1)

    async def play() -> None:
        service.agent.go.clear()
        messages: asyncio.Queue[Any] = asyncio.Queue()
        body = json.dumps({"query": "a ring", "stream": True}).encode()
        headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        scope = {
            "type": "http", "method": "POST", "path": "/v1/search", "raw_path": b"/v1/search", "query_string": b"",
            "headers": headers, "http_version": "1.1", "scheme": "http", "server": ("localhost", 80), "root_path": "",
        }  # fmt: skip
        requests = iter([{"type": "http.request", "body": body}])

        async def receive() -> Any:
            return next(requests, None) or await asyncio.sleep(60)

        answer = asyncio.create_task(service.app(scope, receive, messages.put))
        async with asyncio.timeout(3):
            assert (await messages.get())["status"] == 200
            assert (await messages.get())["body"].startswith(b": ")
            service.agent.go.set()
            assert b"event: done" in (await messages.get())["body"]
            await answer

    asyncio.run(play())


def late(service: Service, path: str, body: dict[str, Any]) -> str:
    """The answer to a request whose search waits for a second and more, and goes on then."""

    async def play() -> str:
        service.agent.go = asyncio.Event()
        async with service.client() as client:
            answer = asyncio.create_task(client.post(path, json=body))
            await asyncio.sleep(0.3)
            service.agent.go.set()
            return (await answer).text

    return asyncio.run(play())


@pytest.mark.parametrize(
    ("fault", "name", "kind"),
    [
        (UnknownVideoError("video 'x' is not in the corpus"), "unknown_video", "invalid_request_error"),
        (PromptError("the prompt has 1100 tokens"), "query_too_long", "invalid_request_error"),
        (SearchTimeoutError("no answer within 60 s"), "search_timeout", "server_error"),
    ],
)
def test_a_refusal_that_comes_late_ends_a_stream_with_its_code(
    service: Service, monkeypatch: pytest.MonkeyPatch, fault: Exception, name: str, kind: str
) -> None:
    monkeypatch.setattr("pipelines.serve.gateway.runs.REFUSAL_S", 0.1)
    service.agent.fault = fault
    *_, last = late(service, "/v1/search", {"query": "a ring", "stream": True}).strip().split("\n\n")
    number, event, data = last.splitlines()
    assert (number, event) == ("id: 1", "event: error")
    told = json.loads(data.removeprefix("data: "))
    assert told.keys() == {"type", "code", "message"} and told["code"] == name and str(fault) in told["message"]
    body = {"model": "vsr1", "stream": True, "messages": [{"role": "user", "content": "a ring"}]}
    *_, chunk, end = late(service, "/v1/chat/completions", body).strip().split("\n\n")
    assert end == "data: [DONE]"
    assert json.loads(chunk.removeprefix("data: ")) == {
        "error": {"code": name, "message": told["message"], "type": kind, "param": None}
    }


def test_a_refusal_of_a_stream_has_its_status(service: Service) -> None:
    answer = service.ask("POST", "/v1/search", json={"query": "a", "stream": True, "corpus": "no"})
    assert code(answer) == (404, "unknown_corpus")


def test_words_that_fill_the_model_are_refused_before_the_search_waits(service: Service) -> None:
    service.agent.go.clear()
    words = "0" * 1200
    for body in ({"stream": True}, {}):
        assert code(service.ask("POST", "/v1/search", json={"query": words} | body)) == (422, "query_too_long")
    message = {"model": "vsr1", "messages": [{"role": "user", "content": words}], "stream": True}
    answer = service.ask("POST", "/v1/chat/completions", json=message)
    assert code(answer) == (400, "query_too_long") and "the model takes 1024" in answer.json()["error"]["message"]
    assert service.agent.bodies == []
    service.agent.go.set()
    assert service.ask("POST", "/v1/search", json={"query": "a ring " * 200}).status_code == 200


def test_a_server_that_stops_says_so_and_finishes_searches_and_uploads(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.serve.gateway.gateway.HANDED_ON_S", 0.0)

    async def play() -> None:
        going = asyncio.Event()

        async def film() -> AsyncIterator[bytes]:
            yield b"a"
            await going.wait()
            yield b"b"

        service.agent.go.clear()
        async with service.client() as client:
            headers = {"Content-Type": "video/mp4"}
            search = asyncio.create_task(client.post("/v1/search", json={"query": "a ring"}))
            upload = asyncio.create_task(client.post("/v1/videos?video_id=a", content=film(), headers=headers))
            await asyncio.sleep(0.05)
            draining = asyncio.create_task(service.gateway.drain())
            await asyncio.sleep(0.05)
            for method, path, options in (
                ("GET", "/readyz", {}),
                ("POST", "/v1/search", {"json": {"query": "another"}}),
                (
                    "POST",
                    "/v1/chat/completions",
                    {"json": {"model": "vsr1", "messages": [{"role": "user", "content": "a"}]}},
                ),
                ("POST", "/v1/videos", {"content": b"c", "headers": headers}),
                ("DELETE", "/v1/videos/a", {}),
            ):
                answer = await client.request(method, path, **options)
                assert code(answer) == (503, "stopping") and answer.headers["retry-after"] == "60"
            assert (await client.get("/v1/videos/a")).status_code == 200
            service.agent.go.set()
            assert (await search).json()["status"] == "not_found"
            assert not draining.done()
            going.set()
            assert (await upload).status_code == 202
            await draining

    asyncio.run(play())


def requests_counted() -> dict[tuple[str, str], float]:
    [counter] = [family for family in metrics.REGISTRY.collect() if family.name == "vsr1_requests"]
    totals = (sample for sample in counter.samples if sample.name == "vsr1_requests_total")
    return {(sample.labels["route"], sample.labels["status"]): sample.value for sample in totals}


def test_who_goes_away_is_no_fault_of_the_server(service: Service) -> None:
    async def play() -> None:
        scope = {
            "type": "http", "method": "POST", "path": "/v1/videos", "raw_path": b"/v1/videos",
            "query_string": b"video_id=a", "headers": [(b"host", b"localhost"), (b"content-type", b"video/mp4")],
            "http_version": "1.1",
            "scheme": "http", "server": ("localhost", 80), "root_path": "",
        }  # fmt: skip
        coming: Iterator[Any] = iter(
            [{"type": "http.request", "body": b"a", "more_body": True}, {"type": "http.disconnect"}]
        )

        async def receive() -> Any:
            return next(coming)

        async def send(message: Any) -> None:
            pass

        await service.app(scope, receive, send)  # the sender leaves
        service.agent.go.clear()
        async with service.client() as client:
            reader = asyncio.create_task(client.post("/v1/search", json={"query": "a ring"}))
            await asyncio.sleep(0.05)
            reader.cancel()
            await asyncio.wait([reader])

    before = requests_counted()
    asyncio.run(play())
    more = {key: value - before.get(key, 0) for key, value in requests_counted().items() if value != before.get(key, 0)}
    assert more == {("/v1/videos", "499"): 1, ("/v1/search", "499"): 1}


def chat(service: Service, **fields: Any) -> httpx2.Response:
    body = {"model": "vsr1", "messages": [{"role": "user", "content": "a ring"}]} | fields
    return service.ask("POST", "/v1/chat/completions", json=body)


def test_what_clients_of_openai_may_send(service: Service) -> None:
    plain = {
        "stream": None, "exclude_ids": None, "top_k": -1, "tool_choice": "auto", "response_format": {"type": "text"},
        "modalities": ["text"], "tools": [], "logprobs": False, "top_logprobs": None, "temperature": 0.7,
    }  # fmt: skip
    for name, value in plain.items():
        assert chat(service, **{name: value}).status_code == 200, name
    picture = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}
    refusal = {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}
    text = {"role": "user", "content": [{"type": "text", "text": "a "}, {"type": "text", "text": "ring"}]}
    assert chat(service, messages=[picture, refusal, text], search_top_k=7).status_code == 200
    assert (service.agent.bodies[-1].query, service.agent.bodies[-1].top_k) == ("a ring", 7)
    others = {
        "tool_choice": "required", "response_format": {"type": "json_object"}, "modalities": ["text", "audio"],
        "top_logprobs": 3, "messages": [text, picture], "search_top_k": 101, "tools": [{"type": "function"}],
    }  # fmt: skip
    for name, value in others.items():
        answer = chat(service, **{name: value})
        assert code(answer) == (400, "invalid_request") and name in answer.json()["error"]["message"]


def test_only_the_last_chunk_has_the_usage_that_was_asked_for(service: Service) -> None:
    for wanted in (True, None):
        text = chat(service, stream=True, stream_options={"include_usage": wanted}).text
        chunks = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
        totals = [chunk["usage"] and chunk["usage"]["total_tokens"] for chunk in chunks if "usage" in chunk]
        assert totals == ([None] * (len(chunks) - 1) + [3] if wanted else [])


def test_a_body_that_is_no_json_is_told_with_the_place(service: Service) -> None:
    headers = {"Content-Type": "application/json"}
    answer = service.ask("POST", "/v1/search", content=b'{"query": "a",}', headers=headers)
    assert code(answer) == (422, "invalid_request") and "is no JSON: " in (message := answer.json()["error"]["message"])
    assert message.endswith("at character 14") or message.endswith("at character 13")


def test_an_empty_last_event_id_is_none(service: Service) -> None:
    path = f"/v1/search/{'0' * 32}/events"
    assert code(service.ask("GET", path, headers={"Last-Event-ID": ""})) == (404, "unknown_search")
    assert code(service.ask("GET", path, headers={"Last-Event-ID": "x"})) == (422, "invalid_request")


def test_models_are_told_in_the_shape_of_openai(service: Service) -> None:
    assert service.ask("GET", "/v1/models/vsr1").json()["id"] == "vsr1"
    answer = service.ask("GET", "/v1/models/gpt-4o")
    assert code(answer) == (404, "model_not_found")
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_a_null_of_a_search_is_as_if_it_were_left_out(service: Service) -> None:
    names = ("corpus", "max_turns", "top_k", "exclude_ids", "threshold", "model", "stream")
    assert service.ask("POST", "/v1/search", json={"query": "a", **dict.fromkeys(names)}).status_code == 200


def test_the_preflight_of_a_browser_s_client(tmp_path: Path) -> None:
    service = Service(tmp_path, cors_origins=["https://app.example"])
    wanted = "authorization,content-type,x-stainless-arch,x-stainless-retry-count"
    headers = {
        "Origin": "https://app.example", "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": wanted,
    }  # fmt: skip
    answer = service.ask("OPTIONS", "/v1/chat/completions", headers=headers)
    assert answer.status_code == 200 and "x-stainless-arch" in answer.headers["access-control-allow-headers"]
    assert service.ask("OPTIONS", "/v1/search", headers=headers | {"Origin": "https://b.example"}).status_code == 400


def test_a_part_that_is_away_is_no_plain_text(service: Service) -> None:
    from ray.serve.exceptions import DeploymentUnavailableError

    def away(*args: Any) -> None:
        raise DeploymentUnavailableError("library")

    service.library.video = Handle(away)
    answer = service.ask("GET", "/v1/videos/a")
    assert code(answer) == (503, "not_ready") and answer.headers["retry-after"] == "5"


def test_errors_of_the_library_keep_their_codes(service: Service) -> None:
    def refused(*args: Any) -> None:
        raise ApiError("too_few_videos")

    service.library.delete = Handle(refused)
    assert code(service.ask("DELETE", "/v1/videos/a")) == (409, "too_few_videos")


def test_times_are_counted_as_long_as_a_search_may_take() -> None:
    assert metrics.WAITS[-1] > 2 * ServeConfig().request_limit_s  # the wait for its place, and the search
