"""Request and reply bodies of the session API v1 (design: one lease a session, one seq a step)."""

from __future__ import annotations

from base64 import b64decode, b64encode
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, WithJsonSchema

from arpo.protocol.actions import Action
from arpo.protocol.problems import Problem


def _from_base64(value: object) -> object:
    return b64decode(value, validate=True) if isinstance(value, str) else value


# Not pydantic's own `base64`: that is the URL-safe alphabet, which `base64 -d` and browsers' data URLs
# refuse.
Blob = Annotated[
    bytes,
    BeforeValidator(_from_base64),
    PlainSerializer(lambda data: b64encode(data).decode("ascii"), return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "contentEncoding": "base64"}),
]
"""Raw bytes in MessagePack and in Python, standard base64 text in JSON."""


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid")


class SessionState(StrEnum):
    """Where a session is."""

    RESETTING = "resetting"
    READY = "ready"
    STEPPING = "stepping"
    EVALUATING = "evaluating"
    CLOSED = "closed"
    FAILED = "failed"


class ScreenshotOptions(_Message):
    """How screenshots are encoded.

    png and webp show every pixel as it is, webp with a quarter of the bytes; jpeg is blurred and, for most screens,
    larger than either. quality: of jpeg only.
    """

    format: Literal["png", "webp", "jpeg"] = "png"
    quality: Annotated[int, Field(ge=1, le=100)] = 80
    max_width: Annotated[int, Field(ge=64)] | None = None


class SessionOptions(_Message):
    """Options of one session."""

    screenshot: ScreenshotOptions = ScreenshotOptions()
    idle_timeout_s: Annotated[float, Field(gt=0, le=3600)] = 120.0
    client_id: Annotated[str, Field(max_length=200)] = ""


class CreateSession(_Message):
    """Body of `POST /v1/sessions`."""

    task: dict[str, Any]
    options: SessionOptions = SessionOptions()


class SessionCreated(_Message):
    """Reply to `POST /v1/sessions`."""

    session_id: str
    lease: int
    state: SessionState


class Screenshot(_Message):
    """An encoded picture of the screen: width and height in pixels, sha256 of `data` in hex.

    `data` is empty in an observation that is `unchanged`: the sha256 names the bytes that the client has.
    """

    media_type: Literal["image/png", "image/webp", "image/jpeg"] = "image/png"
    width: int
    height: int
    sha256: str
    data: Blob = b""


class Observation(_Message):
    """What the agent sees after a reset or a step: the new picture only, never the history.

    unchanged: not a pixel differs from the observation before.
    """

    screenshot: Screenshot
    unchanged: bool = False


class SessionView(_Message):
    """Reply to `GET /v1/sessions/{id}`. `observation`, with its picture, is there in state ready; `problem` in
    state failed.

    `score` is there once an evaluation has ended.
    """

    session_id: str
    state: SessionState
    seq: int
    observation: Observation | None = None
    score: float | None = None
    problem: Problem | None = None


class StepRequest(_Message):
    """Body of `POST /v1/sessions/{id}/step`. `seq` is 1 for the first step and rises by one."""

    lease: int
    seq: Annotated[int, Field(ge=1)]
    actions: Annotated[list[Action], Field(max_length=64)]


class StepReply(_Message):
    """Reply to a step. `done` is true once a terminal action was among those applied."""

    seq: int
    observation: Observation
    done: bool


class EvaluateRequest(_Message):
    """Body of `POST /v1/sessions/{id}/evaluate`."""

    lease: int


class EvaluateReply(_Message):
    """Reply to an evaluation: OSWorld's score in [0, 1]."""

    score: float


class Lease(_Message):
    """Body of `POST /v1/sessions/{id}/heartbeat`."""

    lease: int


class Ready(_Message):
    """Reply to `GET /readyz` when a desktop can be leased now; when none can, the reply is a problem that
    says why.

    `note` names desktops that are out of service all the same.
    """

    note: str = ""


class Capacity(_Message):
    """Reply to `GET /v1/capacity`."""

    provider: str
    capacity: int
    free: int
    busy: int
    quarantined: int
    screen: tuple[int, int]
    version: str


class SessionSummary(_Message):
    """A session as operators see it. age_s, idle_s: seconds since its creation and its last request."""

    session_id: str
    state: SessionState
    seq: int
    caller: str
    client_id: str
    task_id: str
    desktop: int | None
    age_s: float
    idle_s: float
    idle_timeout_s: float
    score: float | None = None
    problem: Problem | None = None


class SessionList(_Message):
    """Reply to `GET /v1/sessions`: the caller's own, everybody's for an admin; closed ones are left out."""

    sessions: list[SessionSummary]


class DesktopStatus(_Message):
    """A place for one desktop. strikes: failures in a row; reason: of the last one."""

    index: int
    state: str
    strikes: int
    reason: str
    session_id: str | None = None


class PoolStatus(_Message):
    """Reply to `GET /v1/pool`."""

    desktops: list[DesktopStatus]


class ResetPool(_Message):
    """Body of `POST /v1/pool/reset`. sessions: end the sessions, too, instead of waiting for their ends."""

    sessions: bool = False
