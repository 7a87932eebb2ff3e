"""Problem types: every failure has a code, and every code names who is to blame.

Invariant: only a failure whose `fault` is `agent` may ever touch a reward.
"""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict


class Fault(StrEnum):
    """Who is to blame for a failure."""

    ENVIRONMENT = "environment"
    AGENT = "agent"
    CLIENT = "client"


class ProblemCode(StrEnum):
    """The machine-readable name of a failure (the `code` of a problem+json body)."""

    UNAUTHORIZED = "unauthorized"
    FORBIDDEN = "forbidden"
    INVALID_REQUEST = "invalid_request"
    INVALID_TASK = "invalid_task"
    INVALID_ACTION = "invalid_action"
    NOT_FOUND = "not_found"
    CAPACITY = "capacity"
    LEASE_LOST = "lease_lost"
    SEQ_CONFLICT = "seq_conflict"
    NOT_READY = "not_ready"
    PAYLOAD_TOO_LARGE = "payload_too_large"
    REQUEST_TIMEOUT = "request_timeout"
    START_FAILED = "start_failed"
    RESET_FAILED = "reset_failed"
    SETUP_FAILED = "setup_failed"
    STEP_TIMEOUT = "step_timeout"
    DESKTOP_LOST = "desktop_lost"
    EVALUATOR_FAILED = "evaluator_failed"
    EVALUATOR_TIMEOUT = "evaluator_timeout"
    BACKEND_LOST = "backend_lost"
    INTERNAL = "internal"


# code → (HTTP status, fault, may the same call be sent again?)
_TRAITS: dict[ProblemCode, tuple[int, Fault, bool]] = {
    ProblemCode.UNAUTHORIZED: (401, Fault.CLIENT, False),
    ProblemCode.FORBIDDEN: (403, Fault.CLIENT, False),
    ProblemCode.INVALID_REQUEST: (422, Fault.CLIENT, False),
    ProblemCode.INVALID_TASK: (422, Fault.CLIENT, False),
    ProblemCode.INVALID_ACTION: (422, Fault.CLIENT, False),
    ProblemCode.NOT_FOUND: (404, Fault.CLIENT, False),
    ProblemCode.CAPACITY: (503, Fault.ENVIRONMENT, True),
    ProblemCode.LEASE_LOST: (409, Fault.CLIENT, False),
    ProblemCode.SEQ_CONFLICT: (409, Fault.CLIENT, False),
    ProblemCode.NOT_READY: (409, Fault.CLIENT, True),
    ProblemCode.PAYLOAD_TOO_LARGE: (413, Fault.CLIENT, False),
    ProblemCode.REQUEST_TIMEOUT: (408, Fault.CLIENT, True),
    ProblemCode.START_FAILED: (503, Fault.ENVIRONMENT, True),
    ProblemCode.RESET_FAILED: (502, Fault.ENVIRONMENT, True),
    ProblemCode.SETUP_FAILED: (502, Fault.ENVIRONMENT, True),
    ProblemCode.STEP_TIMEOUT: (504, Fault.ENVIRONMENT, False),
    ProblemCode.DESKTOP_LOST: (502, Fault.ENVIRONMENT, False),
    ProblemCode.EVALUATOR_FAILED: (502, Fault.ENVIRONMENT, False),
    ProblemCode.EVALUATOR_TIMEOUT: (504, Fault.ENVIRONMENT, False),
    ProblemCode.BACKEND_LOST: (502, Fault.ENVIRONMENT, True),
    ProblemCode.INTERNAL: (500, Fault.ENVIRONMENT, False),
}


class Problem(BaseModel):
    """An `application/problem+json` body.

    trace_id: of the trace that the request belongs to, if it named one by a `traceparent`.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    code: ProblemCode
    detail: str
    fault: Fault
    retryable: bool
    retry_after_s: float | None = None
    trace_id: str | None = None


class ArpoError(Exception):
    """Base of every error whose message is safe and useful to show to a person."""


class ConfigError(ArpoError):
    """The input (a configuration, a task file, a missing program) is wrong; the message says what and how to fix it.

    Command lines print it on one line and exit with code 2.
    """


class ProblemError(ArpoError):
    """A typed failure of a session: raised by desktops, carried over HTTP, raised again by the client."""

    def __init__(self, code: ProblemCode, detail: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(f"{code.value}: {detail}")
        status, fault, retryable = _TRAITS[code]
        self.status = status
        self.problem = Problem(
            code=code, detail=detail, fault=fault, retryable=retryable, retry_after_s=retry_after_s
        )

    @property
    def code(self) -> ProblemCode:
        """The problem's code."""
        return self.problem.code

    @property
    def fault(self) -> Fault:
        """Who is to blame."""
        return self.problem.fault

    @classmethod
    def of(cls, problem: Problem) -> ProblemError:
        """The error for a problem received over the wire."""
        return cls(problem.code, problem.detail, retry_after_s=problem.retry_after_s)
