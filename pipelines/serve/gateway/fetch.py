"""Fetching a video from an address that somebody gives, without being led into the network that this machine is in.

The name is resolved once; every address that it has must be a public one, and the connection goes to an address that
was checked, not to the name again. The same holds for each redirect. No proxy and no cookie of this machine is used.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import AsyncGenerator
from urllib.parse import urljoin

import httpx2

from pipelines.serve.gateway.faults import ApiError

MOST_REDIRECTS = 5
PORTS = {"http": 80, "https": 443}
# Addresses that Python may call global and that lead to others: protocol assignments, 6to4 and its relays, NAT64 of a
# site, sites of old, examples, segments of a route.
LEADING_ELSEWHERE = [
    ipaddress.ip_network(network)
    for network in (
        "192.0.0.0/24", "192.88.99.0/24", "64:ff9b:1::/48", "2002::/16", "3fff::/20", "5f00::/16", "fec0::/10",
    )
]  # fmt: skip


def is_public(address: str) -> bool:
    """Return whether an IP address is one of the public internet."""
    ip = ipaddress.ip_address(address)
    outside = any(ip.version == net.version and ip in net for net in LEADING_ELSEWHERE)
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or outside)


async def fetch(url: str, transport: httpx2.AsyncBaseTransport | None = None) -> AsyncGenerator[bytes, None]:
    """Yield the content of a URL, piece by piece.

    Args:
        transport: stands in for the network in tests.

    Raises:
        ApiError: 422 `url_refused` for an address that is not asked, 422 `fetch_failed` for one that does not answer
            with a file.
    """
    async with httpx2.AsyncClient(trust_env=False, transport=transport, timeout=30, follow_redirects=False) as client:
        for _ in range(MOST_REDIRECTS + 1):
            request = await _request(client, url)
            try:
                answer = await client.send(request, stream=True)
                try:
                    if not answer.has_redirect_location:
                        if answer.status_code != 200:
                            raise _failed(url, f"answers {answer.status_code}")
                        async for piece in answer.aiter_raw():
                            yield piece
                        return
                    url = urljoin(url, answer.headers["location"])
                finally:
                    await answer.aclose()
            except httpx2.HTTPError as error:
                raise _failed(url, f"does not answer ({type(error).__name__})") from error
    raise _failed(url, f"is behind more than {MOST_REDIRECTS} redirects")


async def _request(client: httpx2.AsyncClient, url: str) -> httpx2.Request:
    """Return a request to a checked address of the URL's host, which still gets the host's name."""
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise _refused(url, f"it is not an address ({error})") from error
    if parsed.scheme not in PORTS or not parsed.host or parsed.userinfo:
        raise _refused(url, "only http and https, without a user name, are fetched")
    port = parsed.port or PORTS[parsed.scheme]
    try:
        entries = await asyncio.get_running_loop().getaddrinfo(parsed.host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise _failed(url, f"has a host that is not found ({error})") from error
    addresses = [str(entry[4][0]).partition("%")[0] for entry in entries]
    if not addresses or not all(is_public(address) for address in addresses):
        raise _refused(url, "its host is not on the public internet; upload the file instead")
    headers = {"Host": parsed.netloc.decode("ascii"), "Accept-Encoding": "identity"}
    extensions = {"sni_hostname": parsed.raw_host.decode("ascii")}
    return client.build_request("GET", parsed.copy_with(host=addresses[0]), headers=headers, extensions=extensions)


def _refused(url: str, reason: str) -> ApiError:
    return ApiError("url_refused", f"{url!r} is not fetched: {reason}")


def _failed(url: str, reason: str) -> ApiError:
    return ApiError("fetch_failed", f"{url!r} {reason}; upload the file instead")
