"""Our own routes, under `/arpo/`: whole action lists in one call, settling, tunnels to the desktop's TCP ports."""

from __future__ import annotations

import select
import socket
from collections.abc import Mapping

from .machine import Machine
from .settle import Settled
from .web import Handler, HttpError, Request, Response, json_response

_CHUNK = 1 << 16

# Between two actions of a list: programs put off some keys (LibreOffice the arrows), and text must not overtake them.
_REST_QUIET_S = 0.05
_REST_CEILING_S = 1.0


def routes(machine: Machine) -> Mapping[tuple[str, str], Handler]:
    """The table of `/arpo/` routes."""

    def health(_: Request) -> Response:
        width, height = machine.screen.size
        return json_response({"status": "ok", "width": width, "height": height})

    def act(request: Request) -> Response:
        body = request.json()
        machine.settler.disturb()
        try:
            machine.hands.act(body.get("actions", []), between=rest)
        except (ValueError, KeyError) as error:
            raise HttpError(400, f"bad action: {error}") from None
        return _settled(machine, body)

    def rest() -> None:
        machine.settler.settle(_REST_QUIET_S, _REST_CEILING_S)

    def settle(request: Request) -> Response:
        return _settled(machine, request.json(), go_on=True)

    return {
        ("GET", "/arpo/health"): health,
        ("POST", "/arpo/act"): act,
        ("POST", "/arpo/settle"): settle,
        ("GET", "/arpo/tcp/"): tunnel,
    }


def _settled(machine: Machine, body: Mapping[str, object], *, go_on: bool = False) -> Response:
    settle = body.get("settle") or {}
    if not isinstance(settle, dict):
        raise HttpError(400, "settle is not an object")
    settled: Settled = machine.settler.settle(
        float(settle.get("quiet_s", 0.12)), float(settle.get("ceiling_s", 2.0)), go_on=go_on
    )
    return json_response({"status": "ok", "quiet": settled.quiet, "seconds": round(settled.seconds, 4)})


def tunnel(request: Request) -> None:
    """`GET /arpo/tcp/<port>`: 101, then the bytes of a TCP connection to that port inside the desktop.

    This is how DevTools and VLC are reached from outside of an empty network namespace.
    """
    port = request.path.rsplit("/", 1)[1]
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise HttpError(400, f"no such port: {port!r}")
    try:
        inner = socket.create_connection(("127.0.0.1", int(port)), timeout=5)
    except OSError as error:
        raise HttpError(502, f"nothing answers on port {port} of the desktop: {error}") from None
    with inner:
        inner.settimeout(None)
        outer = request.connection
        outer.sendall(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
        _pump(outer, inner)


def _pump(one: socket.socket, other: socket.socket) -> None:
    """Copy both ways until both sides have ended."""
    peers = {one: other, other: one}
    while peers:
        readable, _, _ = select.select(list(peers), [], [])
        for source in readable:
            target = one if source is other else other
            try:
                data = source.recv(_CHUNK)
                if data:
                    target.sendall(data)
                    continue
                target.shutdown(socket.SHUT_WR)
            except OSError:
                return
            del peers[source]
