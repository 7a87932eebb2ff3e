"""The session API v1. Thin: a route reads a message, calls the session manager, and encodes what it returns."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated

from fastapi import APIRouter, Header, Path, Query, Request, Response, Security

from arpo.protocol import timing
from arpo.protocol.messages import (
    CreateSession,
    EvaluateReply,
    EvaluateRequest,
    Lease,
    SessionCreated,
    SessionList,
    SessionView,
    StepReply,
    StepRequest,
)
from arpo.protocol.problems import ConfigError, ProblemCode, ProblemError
from arpo.server.errors import REQUEST_PROBLEMS, problem_responses
from arpo.server.manager import SessionManager
from arpo.server.measured import Measurement
from arpo.server.registry import CreationKey
from arpo.server.replies import BEARER, BOTH, Trainer, reply
from arpo.tasks.validate import parse_task

MAX_WAIT_S = 25.0
"""Longest long poll: below the idle time-outs of the usual proxies and load balancers."""

SessionId = Annotated[str, Path(max_length=200, examples=["0a1b2c3d.00112233445566aa"])]
WaitS = Annotated[
    float, Query(ge=0, le=MAX_WAIT_S, description="seconds to wait for the desktop to come to rest")
]
IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=200,
        pattern=r"^[\x21-\x7e]+$",
        description="The same key again gets the same session again, so a creation may be repeated.",
    ),
]

_SESSION_PROBLEMS = (
    *REQUEST_PROBLEMS,
    ProblemCode.NOT_FOUND,
    ProblemCode.LEASE_LOST,
    ProblemCode.BACKEND_LOST,
)
_EPISODE_PROBLEMS = (
    *_SESSION_PROBLEMS,
    ProblemCode.NOT_READY,
    ProblemCode.START_FAILED,
    ProblemCode.RESET_FAILED,
    ProblemCode.SETUP_FAILED,
    ProblemCode.INVALID_TASK,
    ProblemCode.DESKTOP_LOST,
    ProblemCode.STEP_TIMEOUT,
    ProblemCode.EVALUATOR_FAILED,
    ProblemCode.EVALUATOR_TIMEOUT,
)


def session_routes(manager: SessionManager) -> APIRouter:
    """The routes under `/v1/sessions`."""
    router = APIRouter(prefix="/v1/sessions", tags=["sessions"], dependencies=[Security(BEARER)])

    @router.post(
        "",
        status_code=201,
        response_model=SessionCreated,
        responses={
            201: BOTH,
            **problem_responses(
                *REQUEST_PROBLEMS, ProblemCode.INVALID_TASK, ProblemCode.CAPACITY, ProblemCode.START_FAILED
            ),
        },
    )
    async def create_session(
        body: CreateSession, request: Request, caller: Trainer, key: IdempotencyKey = None
    ) -> Response:
        """Lease a desktop and begin its reset for a task; returns at once."""
        try:
            task = parse_task(body.task, "task")
        except ConfigError as error:
            raise ProblemError(ProblemCode.INVALID_TASK, str(error)) from error
        creation = None if key is None else CreationKey(key, _digest(body))
        created = manager.create(task, body.options, caller, creation)
        return reply(request, created, 201, {"Location": f"/v1/sessions/{created.session_id}"})

    @router.get(
        "",
        response_model=SessionList,
        responses={200: BOTH, **problem_responses(*REQUEST_PROBLEMS)},
    )
    async def list_sessions(request: Request, caller: Trainer) -> Response:
        """The caller's sessions that are not closed; everybody's for an admin."""
        return reply(request, manager.sessions_of(caller))

    @router.get(
        "/{session_id}",
        response_model=SessionView,
        responses={200: BOTH, **problem_responses(*_SESSION_PROBLEMS)},
    )
    async def get_session(
        session_id: SessionId, request: Request, caller: Trainer, wait_s: WaitS = 0.0
    ) -> Response:
        """Where the session is. With `wait_s` the answer waits until the desktop has come to rest."""
        view = await manager.view(session_id, caller, wait_s)
        # while nothing was done but the reset, a client that waits for it learns where its time went
        headers = _timing(manager.measurement(session_id, caller, "reset")) if view.observation else {}
        return reply(request, view, headers=headers)

    @router.post(
        "/{session_id}/step",
        response_model=StepReply,
        responses={
            200: BOTH,
            202: {"model": SessionView, "description": "still stepping: send the step again", **BOTH},
            **problem_responses(*_EPISODE_PROBLEMS, ProblemCode.INVALID_ACTION, ProblemCode.SEQ_CONFLICT),
        },
    )
    async def step(
        session_id: SessionId,
        body: StepRequest,
        request: Request,
        caller: Trainer,
        wait_s: WaitS = MAX_WAIT_S,
    ) -> Response:
        """Perform actions. The same seq again joins the step that is running, or gets the reply to the one that was
        applied, and performs nothing.
        """
        answer = await manager.step(session_id, caller, body, wait_s)
        if answer is None:
            return reply(request, await manager.view(session_id, caller), 202)
        return reply(
            request, answer, headers=_timing(manager.measurement(session_id, caller, f"step {body.seq}"))
        )

    @router.post(
        "/{session_id}/evaluate",
        response_model=EvaluateReply,
        responses={
            200: BOTH,
            202: {
                "model": SessionView,
                "description": "still evaluating: ask again, or poll the session",
                **BOTH,
            },
            **problem_responses(*_EPISODE_PROBLEMS),
        },
    )
    async def evaluate(
        session_id: SessionId,
        body: EvaluateRequest,
        request: Request,
        caller: Trainer,
        wait_s: WaitS = MAX_WAIT_S,
    ) -> Response:
        """Score the desktop's state. It is evaluated once; asking again gets the same score."""
        score = await manager.evaluate(session_id, caller, body.lease, wait_s)
        if score is None:
            return reply(request, await manager.view(session_id, caller), 202)
        headers = _timing(manager.measurement(session_id, caller, "evaluate"))
        return reply(request, EvaluateReply(score=score), headers=headers)

    @router.post("/{session_id}/heartbeat", status_code=204, responses=problem_responses(*_EPISODE_PROBLEMS))
    async def heartbeat(session_id: SessionId, body: Lease, caller: Trainer) -> Response:
        """Keep the session while its client is busy elsewhere."""
        manager.heartbeat(session_id, caller, body.lease)
        return Response(status_code=204)

    @router.delete("/{session_id}", status_code=204, responses=problem_responses(*_SESSION_PROBLEMS))
    async def delete_session(session_id: SessionId, caller: Trainer, lease: int | None = None) -> Response:
        """Release the session; doing so again is no error. With `lease`, only if that is the session's."""
        manager.release(session_id, caller, lease)
        return Response(status_code=204)

    return router


def _digest(body: CreateSession) -> bytes:
    return hashlib.sha256(json.dumps(body.model_dump(mode="json"), sort_keys=True).encode()).digest()


def _timing(measurement: Measurement | None) -> dict[str, str]:
    if measurement is None or not measurement.phases.intervals:
        return {}
    began = measurement.started
    return {
        timing.HEADER: timing.write_timing(
            timing.Spent(one.name, one.start - began, one.seconds) for one in measurement.phases.intervals
        )
    }
