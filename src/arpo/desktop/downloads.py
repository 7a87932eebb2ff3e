"""The HTTP transport of task downloads: every hop of a redirect goes to an address that the policy permits.

A name is resolved here, judged, and the request is sent to that very address, so that a name which answers
differently the second time gains nothing. Where the environment names a proxy (HTTP_PROXY, HTTPS_PROXY, NO_PROXY) the
proxy resolves; then names are judged as far as a name tells.

Invariant: no connection is opened to an address that `AddressPolicy` did not permit, but for the operator's own proxy.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from urllib.request import getproxies, proxy_bypass

import httpx

from arpo.desktop.addresses import AddressPolicy, AddressRefused

Resolver = Callable[[str, int], Awaitable[Sequence[str]]]
"""(host name, port) → its addresses; raises OSError."""

_PORTS = {"http": 80, "https": 443}


async def resolve(host: str, port: int) -> Sequence[str]:
    """The addresses of a host name, as the system sees them. Raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))


class PublicTransport(httpx.AsyncBaseTransport):
    """Sends requests to permitted addresses. Raises AddressRefused besides httpx's own errors."""

    def __init__(self, policy: AddressPolicy, resolver: Resolver = resolve) -> None:
        self._policy = policy
        self._resolve = resolver
        self._direct = httpx.AsyncHTTPTransport(limits=_NO_REUSE)
        self._proxied: dict[str, httpx.AsyncHTTPTransport] = {}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request, that of a redirect's next hop included."""
        if request.url.scheme not in _PORTS:  # where a redirect may lead, too
            raise AddressRefused(
                f"it leads to a {request.url.scheme[:20]}: URL; only http: and https: are followed"
            )
        host = request.url.raw_host.decode("ascii")
        proxy = _proxy_for(request.url.scheme, host)
        if proxy is not None:
            self._policy.check_name(host)
            return await self._through(proxy).handle_async_request(request)
        failure: httpx.ConnectError | httpx.ConnectTimeout | None = None
        for address in await self._permitted(request, host):
            try:
                return await self._direct.handle_async_request(_sent_to(address, host, request))
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                failure = error
        raise failure or httpx.ConnectError(f"{host} has no address", request=request)

    async def aclose(self) -> None:
        """Close what is open."""
        for transport in (self._direct, *self._proxied.values()):
            await transport.aclose()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        await self.aclose()

    async def _permitted(self, request: httpx.Request, host: str) -> Sequence[str]:
        port = request.url.port or _PORTS[request.url.scheme]
        timeouts: dict[str, float | None] = request.extensions.get("timeout", {})
        try:
            async with asyncio.timeout(timeouts.get("connect")):
                addresses = await self._resolve(host, port)
        except TimeoutError as error:
            raise httpx.ConnectTimeout(f"{host} was not resolved in time", request=request) from error
        except (OSError, UnicodeError) as error:
            raise httpx.ConnectError(f"{host} cannot be resolved: {error}", request=request) from error
        permitted: list[str] = []
        refusal: AddressRefused | None = None
        for address in addresses:
            try:
                self._policy.check(host, address)
                permitted.append(address)
            except AddressRefused as error:
                refusal = error
        if refusal is not None and not permitted:
            raise refusal
        return permitted

    def _through(self, proxy: str) -> httpx.AsyncHTTPTransport:
        if proxy not in self._proxied:
            try:
                self._proxied[proxy] = httpx.AsyncHTTPTransport(proxy=proxy, limits=_NO_REUSE)
            except (ImportError, ValueError, httpx.InvalidURL) as error:
                raise httpx.ProxyError(f"the environment's proxy cannot be used: {error}") from error
        return self._proxied[proxy]


# A kept connection belongs to an address; another name at that address must prove its own certificate.
_NO_REUSE = httpx.Limits(max_keepalive_connections=0)


def _sent_to(address: str, host: str, request: httpx.Request) -> httpx.Request:
    """The same request to `address`: the Host header and the certificate's name stay those of `host`."""
    return httpx.Request(
        request.method,
        request.url.copy_with(host=address),
        headers=request.headers,
        stream=request.stream,
        extensions={**request.extensions, "sni_hostname": host},
    )


def _proxy_for(scheme: str, host: str) -> str | None:
    proxies = getproxies()
    proxy = proxies.get(scheme) or proxies.get("all")
    if not proxy or proxy_bypass(host):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"
