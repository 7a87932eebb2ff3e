"""The HTTP face of the env-server: which routes there are, and what stands before them."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import FastAPI

import arpo
from arpo.server.errors import ProblemResponses, install_error_handlers
from arpo.server.legacy import legacy_routes
from arpo.server.legacy_access import LegacyAccess
from arpo.server.legacy_sessions import LegacySettings
from arpo.server.manager import SessionManager
from arpo.server.middleware import BearerAuth, RequestBody, TraceContext
from arpo.server.session_routes import session_routes
from arpo.server.status_routes import probe_routes, status_routes
from arpo.server.tokens import TokenFile


@dataclass(frozen=True)
class HttpLimits:
    """What a request may be.

    max_body_bytes: larger bodies are refused. header_timeout_s, body_timeout_s: within which a request's header and
    its body must arrive.
    """

    max_body_bytes: int = 8 * 1024 * 1024
    header_timeout_s: float = 20.0
    body_timeout_s: float = 60.0


def create_app(
    manager: SessionManager,
    tokens: TokenFile,
    *,
    provider: str,
    screen: tuple[int, int],
    limits: HttpLimits,
    legacy: LegacySettings,
    without_token: LegacyAccess | None = None,
) -> FastAPI:
    """The application.

    provider, screen (pixels): as `/v1/capacity` names them. without_token: the door for legacy requests that carry
    none.
    """
    app = FastAPI(
        title="ARPO env-server",
        version=arpo.__version__,
        summary="Lease a desktop, act on it, have it scored.",
        docs_url=None,
        redoc_url=None,
    )
    problem_response = ProblemResponses(manager.metrics)
    app.add_middleware(
        RequestBody,
        limit=limits.max_body_bytes,
        timeout_s=limits.body_timeout_s,
        problem_response=problem_response,
    )
    # The last one added is the first one asked.
    app.add_middleware(
        BearerAuth,
        tokens=tokens,
        problem_response=problem_response,
        anonymous=without_token.caller if without_token else None,
    )
    app.add_middleware(TraceContext)
    install_error_handlers(app, problem_response)
    app.include_router(session_routes(manager))
    app.include_router(probe_routes(manager))
    app.include_router(status_routes(manager, provider, screen))
    app.include_router(legacy_routes(manager, provider, legacy))
    return app
