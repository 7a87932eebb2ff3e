"""The API of ARPO's first remote env-server, for clients that speak nothing else: `/env/*` and `/health`.

Thin: a route reads a message, calls the legacy sessions, and encodes what they return.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response, Security
from pydantic import BaseModel

import arpo
from arpo.protocol.codec import JSON, encode
from arpo.protocol.problems import ProblemCode, ProblemError
from arpo.server.errors import REQUEST_PROBLEMS, problem_responses
from arpo.server.legacy_messages import (
    LegacyHealth,
    LegacyHistory,
    LegacyObservation,
    LegacyReset,
    LegacyStep,
)
from arpo.server.legacy_sessions import LegacySessions, LegacySettings
from arpo.server.manager import SessionManager
from arpo.server.replies import BEARER, Trainer

FAILURE_HEADER = "Arpo-Problem"
"""Response header of a reset that failed: its code and why, in one line."""

_FAILURE_SCHEMA = {
    "description": "Only of a reset that failed: its code and why, in one line.",
    "schema": {"type": "string"},
}
_SHOWN = 500  # characters of the reason

_EPISODE_PROBLEMS = (
    *REQUEST_PROBLEMS,
    ProblemCode.INVALID_TASK,
    ProblemCode.LEASE_LOST,
    ProblemCode.START_FAILED,
    ProblemCode.RESET_FAILED,
    ProblemCode.SETUP_FAILED,
    ProblemCode.STEP_TIMEOUT,
    ProblemCode.DESKTOP_LOST,
    ProblemCode.BACKEND_LOST,
    ProblemCode.EVALUATOR_FAILED,
    ProblemCode.EVALUATOR_TIMEOUT,
)
"""An episode that failed says why to whatever is asked next."""


def legacy_routes(
    manager: SessionManager, provider: str, settings: LegacySettings | None = None
) -> APIRouter:
    """The routes. provider: its name, for `/health`. The caller of a request is in `request.state.caller`."""
    sessions = LegacySessions(manager, settings or LegacySettings())
    router = APIRouter(tags=["legacy"])
    secured = [Security(BEARER)]

    @router.post(
        "/env/reset",
        dependencies=secured,
        response_model=LegacyObservation,
        responses=problem_responses(
            *REQUEST_PROBLEMS,
            ProblemCode.LEASE_LOST,
            ProblemCode.CAPACITY,
            ProblemCode.START_FAILED,
        )
        | {200: {"headers": {FAILURE_HEADER: _FAILURE_SCHEMA}}},
    )
    async def env_reset(body: LegacyReset, request: Request, caller: Trainer) -> Response:
        """End the token's episode and begin one; waits for a desktop. When it fails, is_done is true at once."""
        opened = await sessions.reset(caller, body.task_config, request.is_disconnected)
        return _reply(opened.reply, headers=_why(opened.failure))

    @router.post(
        "/env/step",
        dependencies=secured,
        response_model=LegacyObservation,
        responses=problem_responses(*_EPISODE_PROBLEMS),
    )
    async def env_step(body: LegacyStep, request: Request, caller: Trainer) -> Response:
        """Perform a prediction's actions; answers the whole conversation, or null once the episode is over."""
        return _reply(await sessions.step(caller, body.prediction, request.is_disconnected))

    @router.post(
        "/env/evaluate",
        dependencies=secured,
        response_model=float,
        responses={
            200: {"content": {JSON: {"example": 1.0}}},
            **problem_responses(*_EPISODE_PROBLEMS),
        },
    )
    async def env_evaluate(caller: Trainer, body: dict[str, Any] | None = None) -> Response:
        """Score the token's episode: a bare number; the same one when asked again."""
        return Response(str(await sessions.evaluate(caller)), media_type=JSON)

    @router.post(
        "/env/history_messages",
        dependencies=secured,
        response_model=LegacyHistory,
        responses=problem_responses(*REQUEST_PROBLEMS),
    )
    async def env_history_messages(caller: Trainer, body: dict[str, Any] | None = None) -> Response:
        """The whole conversation of the token's episode; empty when none has begun."""
        return _reply(LegacyHistory(history_messages=sessions.history(caller)))

    @router.get("/health", response_model=LegacyHealth)
    async def health() -> Response:
        """The process answers; what it serves. Needs no token."""
        pool = manager.pool
        return _reply(
            LegacyHealth(
                provider=provider,
                version=arpo.__version__,
                capacity=pool.size,
                free=pool.available(),
            )
        )

    return router


def _reply(message: BaseModel, headers: dict[str, str] | None = None) -> Response:
    return Response(encode(message), media_type=JSON, headers=headers)


def _why(failure: ProblemError | None) -> dict[str, str]:
    """The header that names a failure; these clients look at no body but that of an observation."""
    if failure is None:
        return {}
    text = f"{failure.code.value}: {failure.problem.detail[:_SHOWN]}"
    # Details quote tasks and guests: a header is one line of visible characters.
    return {FAILURE_HEADER: "".join(c if " " <= c <= "~" else "?" for c in text)}
