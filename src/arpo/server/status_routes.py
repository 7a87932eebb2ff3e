"""What probes, operators and Prometheus ask."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response, Security

import arpo
from arpo.protocol.messages import Capacity, PoolStatus, Ready, ResetPool
from arpo.protocol.problems import ProblemCode
from arpo.server.errors import problem_responses
from arpo.server.manager import SessionManager
from arpo.server.metrics import CONTENT_TYPE
from arpo.server.pool import SlotState
from arpo.server.replies import BEARER, BOTH, Admin, Anyone, reply

_PROBLEMS = (ProblemCode.UNAUTHORIZED, ProblemCode.FORBIDDEN, ProblemCode.INVALID_REQUEST)


def probe_routes(manager: SessionManager) -> APIRouter:
    """What needs no token."""
    router = APIRouter(tags=["probes"])

    @router.get("/healthz")
    async def healthz() -> dict[str, str]:
        """The process answers. Needs no token."""
        return {"status": "ok"}

    @router.get(
        "/readyz",
        response_model=Ready,
        responses=problem_responses(ProblemCode.CAPACITY, ProblemCode.START_FAILED),
    )
    async def readyz(request: Request) -> Response:
        """Whether a desktop can be leased now, and why not. Needs no token."""
        manager.check_open()
        pool = manager.pool
        if not pool.available():
            raise pool.shortage()
        return reply(request, Ready(note=pool.out_of_service()))

    return router


def status_routes(manager: SessionManager, provider: str, screen: tuple[int, int]) -> APIRouter:
    """What operators and trainers ask about the server as a whole."""
    router = APIRouter(tags=["operators"], dependencies=[Security(BEARER)])

    @router.get(
        "/v1/capacity", response_model=Capacity, responses={200: BOTH, **problem_responses(*_PROBLEMS)}
    )
    async def capacity(request: Request, _: Anyone) -> Response:
        """How many desktops can be leased, and what they are doing; the rest are starting or being cleaned."""
        pool = manager.pool
        return reply(
            request,
            Capacity(
                provider=provider,
                capacity=pool.size,
                free=pool.available(),
                busy=pool.count(SlotState.LEASED),
                quarantined=pool.count(SlotState.QUARANTINED),
                screen=screen,
                version=arpo.__version__,
            ),
        )

    @router.get("/v1/pool", response_model=PoolStatus, responses={200: BOTH, **problem_responses(*_PROBLEMS)})
    async def pool_status(request: Request, _: Admin) -> Response:
        """Every desktop: its state, its failures in a row and why, and the session that holds it."""
        return reply(request, manager.pool_status())

    @router.post(
        "/v1/pool/reset",
        response_model=PoolStatus,
        responses={
            200: BOTH,
            **problem_responses(*_PROBLEMS, ProblemCode.REQUEST_TIMEOUT, ProblemCode.PAYLOAD_TOO_LARGE),
        },
    )
    async def reset_pool(body: ResetPool, request: Request, _: Admin) -> Response:
        """Put a fresh desktop in every place; leased ones are replaced when their sessions end."""
        manager.reset_pool(end_sessions=body.sessions)
        return reply(request, manager.pool_status())

    @router.get(
        "/metrics",
        response_class=Response,
        responses={
            200: {"content": {CONTENT_TYPE.partition(";")[0]: {"schema": {"type": "string"}}}},
            **problem_responses(*_PROBLEMS),
        },
    )
    async def metrics(_: Admin) -> Response:
        """Numbers in Prometheus' text format."""
        return Response(manager.metrics.text(), media_type=CONTENT_TYPE)

    return router
