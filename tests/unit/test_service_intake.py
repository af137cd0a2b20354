"""Where a file may come from, without a server: addresses, redirects, sizes."""

import asyncio
import hashlib
import itertools
import socket
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from pipelines.serve.gateway.faults import ApiError
from pipelines.serve.gateway.fetch import MOST_REDIRECTS, fetch, is_public
from pipelines.serve.gateway.intake import Intake, receive
from vsr1.settings.serving import ServeConfig

PUBLIC = ["8.8.8.8", "2606:4700::1111"]
INSIDE = [
    "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "192.0.0.8",
    "224.0.1.1", "255.255.255.255", "198.18.0.1", "::1", "::", "fe80::1", "fc00::1", "ff0e::1", "::ffff:127.0.0.1",
    "64:ff9b::7f00:1", "64:ff9b:1::a00:1", "2002:7f00:1::", "2001:db8::1", "fec0::1", "3fff::1", "192.88.99.1",
    "5f00::1",
]  # fmt: skip


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """What names resolve to; each name is asked for once, its next answer is another."""
    table = {"videos.example": ["8.8.8.8"], "inside.example": ["10.0.0.1"], "both.example": ["8.8.8.8", "10.0.0.1"]}
    asked: set[str] = set()

    def resolve(host: str, port: int, *rest: Any, **more: Any) -> list[Any]:
        found = ["127.0.0.1"] if host in asked else table.get(host, [host])
        asked.add(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    return table


async def everything(pieces: AsyncGenerator[bytes, None]) -> bytes:
    return b"".join([piece async for piece in pieces])


async def film() -> AsyncGenerator[bytes, None]:
    yield b"fi"
    yield b"lm"


def ask(url: str, answer: Any) -> bytes:
    return asyncio.run(everything(fetch(url, httpx2.MockTransport(answer))))


def code_of(call: Any) -> str:
    with pytest.raises(ApiError) as refused:
        call()
    return refused.value.code


def test_public_addresses_and_others() -> None:
    assert [address for address in PUBLIC + INSIDE if is_public(address)] == PUBLIC


def test_the_address_that_was_checked_is_the_one_asked(names: dict[str, list[str]]) -> None:
    def answer(request: httpx2.Request) -> httpx2.Response:
        assert (request.url.host, request.headers["host"]) == ("8.8.8.8", "videos.example:8443")
        assert request.extensions["sni_hostname"] == "videos.example"
        return httpx2.Response(200, content=film())

    assert ask("https://videos.example:8443/a?b=c", answer) == b"film"


@pytest.mark.parametrize("url", ["http://inside.example/x", "https://both.example/x"])
def test_a_name_with_an_address_inside_is_refused(names: dict[str, list[str]], url: str) -> None:
    assert code_of(lambda: ask(url, lambda request: pytest.fail("was asked"))) == "url_refused"


@pytest.mark.parametrize("target", ["http://inside.example/x", "http://127.0.0.1/x", "file:///etc/passwd"])
def test_a_redirect_is_checked_again(names: dict[str, list[str]], target: str) -> None:
    moved = httpx2.Response(302, headers={"Location": target})
    assert code_of(lambda: ask("http://videos.example/x", lambda request: moved)) == "url_refused"


def test_redirects_are_followed_so_far(names: dict[str, list[str]]) -> None:
    def answer(request: httpx2.Request) -> httpx2.Response:
        if request.url.host == "8.8.4.4":
            return httpx2.Response(200, content=film())
        return httpx2.Response(301, headers={"Location": "http://8.8.4.4/y"})

    assert ask("http://videos.example/x", answer) == b"film"
    hops = itertools.count(1)

    def around(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(302, headers={"Location": f"http://8.8.8.{next(hops)}/x"})

    assert code_of(lambda: ask("http://9.9.9.9/x", around)) == "fetch_failed"
    assert next(hops) == MOST_REDIRECTS + 2


def test_what_is_no_file_is_not_one(names: dict[str, list[str]]) -> None:
    def broken(request: httpx2.Request) -> httpx2.Response:
        raise httpx2.ConnectError("no route")

    assert code_of(lambda: ask("http://8.8.8.8/x", lambda request: httpx2.Response(404))) == "fetch_failed"
    assert code_of(lambda: ask("http://9.9.9.9/x", broken)) == "fetch_failed"


def test_a_file_is_written_as_it_comes_and_no_further_than_allowed(tmp_path: Path) -> None:
    given = 0

    async def pieces() -> AsyncGenerator[bytes, None]:
        nonlocal given
        for number in range(100):
            given += 1
            yield bytes([number]) * 100_000

    content = b"".join(bytes([number]) * 100_000 for number in range(100))
    digest = asyncio.run(receive(pieces(), tmp_path / "a" / "film", 10_000_000))
    assert (tmp_path / "a" / "film").read_bytes() == content
    assert digest == hashlib.sha256(content).hexdigest()
    given = 0
    assert code_of(lambda: asyncio.run(receive(pieces(), tmp_path / "b" / "film", 3_000_000))) == "too_large"
    assert given == 31 and (tmp_path / "b" / "film").stat().st_size <= 3_000_000


def test_paths_and_addresses_are_off_unless_they_are_turned_on() -> None:
    intake = Intake(ServeConfig(), None)
    assert code_of(lambda: intake.file("film.mp4")) == "paths_are_off"
    assert code_of(lambda: intake.url("http://8.8.8.8/film.mp4")) == "urls_are_off"


def test_a_path_is_followed_below_its_root_only(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (root / "sub" / "film").write_bytes(b"film")
    (tmp_path / "outside").write_bytes(b"secret")
    (root / "link").symlink_to(tmp_path / "outside")
    (root / "inner").symlink_to(root / "sub" / "film")
    (root / "circle").symlink_to(root / "circle")
    intake = Intake(ServeConfig.model_validate({"upload": {"path_root": root}}), None)
    for path in ("sub/film", "sub/../sub/film", str(root / "sub" / "film"), "inner"):
        assert asyncio.run(everything(intake.file(path))) == b"film"
    for path in ("../outside", str(tmp_path / "outside"), "link", "circle", "sub", "x" * 5000, "a\0b", "~/x", "."):
        assert code_of(lambda path=path: intake.file(path)) == "path_refused"
