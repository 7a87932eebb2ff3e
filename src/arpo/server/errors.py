"""Errors as `application/problem+json`, whatever raised them.

Invariant: no reply of the env-server with a status of 400 or more has another body than a problem.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from arpo.protocol.codec import PROBLEM_JSON
from arpo.protocol.problems import Problem, ProblemCode, ProblemError
from arpo.server.metrics import ServerMetrics
from arpo.telemetry import tracing

REQUEST_PROBLEMS = (
    ProblemCode.UNAUTHORIZED,
    ProblemCode.FORBIDDEN,
    ProblemCode.INVALID_REQUEST,
    ProblemCode.REQUEST_TIMEOUT,
    ProblemCode.PAYLOAD_TOO_LARGE,
)
"""What any request that carries a token may be answered with."""

_UNREADABLE_BODY = 400
"""FastAPI's status for a body that is no JSON at all; ours for that is the one for any invalid request."""


class ProblemResponses:
    """Turns errors into replies, and counts them."""

    def __init__(self, metrics: ServerMetrics) -> None:
        self._metrics = metrics

    def __call__(
        self, error: ProblemError, *, status: int | None = None, headers: Mapping[str, str] | None = None
    ) -> Response:
        """The reply for an error. status: instead of the code's own, where HTTP has a more exact one."""
        problem = error.problem
        self._metrics.problem_answered(problem.code.value, problem.fault.value)
        extra = dict(headers or {})
        if problem.retry_after_s is not None:
            extra["Retry-After"] = str(max(1, round(problem.retry_after_s)))
        if problem.code is ProblemCode.UNAUTHORIZED:
            extra["WWW-Authenticate"] = "Bearer"
        # What a client sent may come back in the detail, and JSON texts can hold lone surrogates, which UTF-8
        # cannot.
        detail = problem.detail.encode("utf-8", "replace").decode()
        answered = problem.model_copy(update={"detail": detail, "trace_id": tracing.trace_id()})
        body = answered.model_dump_json(exclude_none=True)
        return Response(body, status_code=status or error.status, media_type=PROBLEM_JSON, headers=extra)


def install_error_handlers(app: FastAPI, problem_response: ProblemResponses) -> None:
    """Make every error of the application a problem."""

    async def on_problem(_: Request, error: Exception) -> Response:
        assert isinstance(error, ProblemError)  # noqa: S101 - for the type checker; registered below
        return problem_response(error)

    async def on_invalid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)  # noqa: S101
        return problem_response(_invalid(error.errors()))

    async def on_http(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)  # noqa: S101
        if error.status_code == _UNREADABLE_BODY:
            return problem_response(ProblemError(ProblemCode.INVALID_REQUEST, str(error.detail)))
        code = ProblemCode.NOT_FOUND if error.status_code == 404 else ProblemCode.INVALID_REQUEST
        return problem_response(
            ProblemError(code, str(error.detail)), status=error.status_code, headers=error.headers
        )

    async def on_bug(_: Request, error: Exception) -> Response:
        # The traceback is in the server's log, not on the wire.
        return problem_response(
            ProblemError(ProblemCode.INTERNAL, f"unexpected {type(error).__name__}; see the server's log")
        )

    app.add_exception_handler(ProblemError, on_problem)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(Exception, on_bug)


def problem_responses(*codes: ProblemCode) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's `responses` of a route: every problem it answers with, by status, each with an example."""
    by_status: dict[int, list[ProblemError]] = {}
    for code in codes:
        error = ProblemError(code, "what happened, and what to do", retry_after_s=_example_pause_s(code))
        by_status.setdefault(error.status, []).append(error)
    return {status: _described(errors) for status, errors in by_status.items()}


def _example_pause_s(code: ProblemCode) -> float | None:
    return 0.5 if code is ProblemCode.CAPACITY else None


def _described(errors: Sequence[ProblemError]) -> dict[str, Any]:
    examples = {
        error.code.value: {"value": error.problem.model_dump(mode="json", exclude_none=True)}
        for error in errors
    }
    schema = {"$ref": f"#/components/schemas/{Problem.__name__}"}
    return {
        "description": ", ".join(examples),
        "content": {PROBLEM_JSON: {"schema": schema, "examples": examples}},
    }


def _invalid(errors: Sequence[Any]) -> ProblemError:
    first = errors[0]
    where = [str(part) for part in first["loc"]]
    code = ProblemCode.INVALID_REQUEST
    if where[:2] == ["body", "actions"]:
        code = ProblemCode.INVALID_ACTION
    elif where[:2] == ["body", "task"]:
        code = ProblemCode.INVALID_TASK
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return ProblemError(code, f"{'.'.join(where)}: {first['msg']}{more}")
