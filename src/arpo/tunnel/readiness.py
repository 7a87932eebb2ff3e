"""Whether the env-server answers: asked through the tunnel and back, or, where the far side lets nobody back, here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import httpx

_PATIENCE_S = 10.0


@dataclass(frozen=True)
class Readiness:
    """ready: a desktop can be leased now. detail: why not."""

    ready: bool
    detail: str = ""


async def through(check: Path) -> Readiness | None:
    """/readyz of whatever answers at the far end of the tunnel; None: nothing came back."""
    try:
        return await _readyz("http://tunnel", httpx.AsyncHTTPTransport(uds=str(check)))
    except httpx.TransportError:
        return None


async def here(url: str) -> Readiness | None:
    """/readyz of the env-server on this machine; None: there is none."""
    try:
        return await _readyz(url, None)
    except httpx.TransportError:
        return None


async def _readyz(url: str, transport: httpx.AsyncBaseTransport | None) -> Readiness:
    async with httpx.AsyncClient(transport=transport, timeout=_PATIENCE_S, trust_env=False) as http:
        answer = await http.get(f"{url}/readyz")
    if answer.is_success:
        return Readiness(True)
    try:
        detail = str(answer.json()["detail"])
    except (ValueError, KeyError, TypeError):
        detail = f"status {answer.status_code}: is it an env-server?"
    return Readiness(False, detail)
