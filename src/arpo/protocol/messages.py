"""Request and reply bodies of the session API v1 (design: one lease a session, one seq a step)."""

from __future__ import annotations

from base64 import b64decode, b64encode
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    WithJsonSchema,
)

from arpo.protocol.actions import MAX_TEXT, Action, Type
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


def _example(**fields: Any) -> ConfigDict:
    """A message's example in the OpenAPI document."""
    return ConfigDict(extra="forbid", json_schema_extra={"examples": [fields]})


_SESSION = "0a1b2c3d.00112233445566aa"
_PIXEL = {
    "media_type": "image/png",
    "width": 1,
    "height": 1,
    "sha256": "eaa4a94ea300e0d2c775968cbe42f0b5b51ceafdeb73d64e9efddf6d4e880865",
    "data": "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg==",
}
_OBSERVATION = {"screenshot": _PIXEL, "unchanged": False}


class SessionState(StrEnum):
    """Where a session is."""

    RESETTING = "resetting"
    READY = "ready"
    STEPPING = "stepping"
    EVALUATING = "evaluating"
    CLOSED = "closed"
    FAILED = "failed"


ONE_LINE = r"^[^\x00-\x1f\x7f-\x9f]*$"
"""Text that cannot forge a line of a log or drive a terminal."""

MAX_IDLE_TIMEOUT_S = 3600.0
"""The longest silence that a session may ask to outlive."""


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
    idle_timeout_s: Annotated[float, Field(gt=0, le=MAX_IDLE_TIMEOUT_S)] = 120.0
    client_id: Annotated[str, Field(max_length=200, pattern=ONE_LINE)] = ""


class CreateSession(_Message):
    """Body of `POST /v1/sessions`."""

    model_config = _example(
        task={
            "id": "open-the-moon",
            "instruction": "Open the moon.",
            "config": [],
            "evaluator": {"func": "infeasible"},
        },
        options={"screenshot": {"format": "webp"}, "idle_timeout_s": 120, "client_id": "run-7"},
    )

    task: dict[str, Any]
    options: SessionOptions = SessionOptions()


class SessionCreated(_Message):
    """Reply to `POST /v1/sessions`."""

    model_config = _example(session_id=_SESSION, lease=17, state="resetting")

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

    model_config = _example(session_id=_SESSION, state="ready", seq=0, observation=_OBSERVATION)

    session_id: str
    state: SessionState
    seq: int
    observation: Observation | None = None
    score: float | None = None
    problem: Problem | None = None


def _short_enough(actions: list[Action]) -> list[Action]:
    length = sum(len(action.text) for action in actions if isinstance(action, Type))
    if length > MAX_TEXT:
        raise ValueError(f"{length} characters of text in one step; at most {MAX_TEXT} are taken")
    return actions


class StepRequest(_Message):
    """Body of `POST /v1/sessions/{id}/step`. `seq` is 1 for the first step and rises by one.

    At most 64 actions that type at most 20 000 characters together: what a desktop can do before it looks stuck.
    """

    model_config = _example(
        lease=17,
        seq=1,
        actions=[{"kind": "click", "x": 100, "y": 80}, {"kind": "type", "text": "hello\n"}],
    )

    lease: int
    seq: Annotated[int, Field(ge=1)]
    actions: Annotated[list[Action], Field(max_length=64), AfterValidator(_short_enough)]


class StepReply(_Message):
    """Reply to a step. `done` is true once a terminal action was among those applied."""

    model_config = _example(seq=1, observation=_OBSERVATION, done=False)

    seq: int
    observation: Observation
    done: bool


class EvaluateRequest(_Message):
    """Body of `POST /v1/sessions/{id}/evaluate`."""

    model_config = _example(lease=17)

    lease: int


class EvaluateReply(_Message):
    """Reply to an evaluation: OSWorld's score in [0, 1]."""

    model_config = _example(score=1.0)

    score: float


class Lease(_Message):
    """Body of `POST /v1/sessions/{id}/heartbeat`."""

    model_config = _example(lease=17)

    lease: int


class Ready(_Message):
    """Reply to `GET /readyz` when a desktop can be leased now; when none can, the reply is a problem that
    says why.

    `note` names desktops that are out of service all the same.
    """

    model_config = _example(note="")

    note: str = ""


class Capacity(_Message):
    """Reply to `GET /v1/capacity`."""

    model_config = _example(
        provider="xvfb", capacity=4, free=3, busy=1, quarantined=0, screen=[1280, 720], version="0.1.0"
    )

    provider: str
    capacity: int
    free: int
    busy: int
    quarantined: int
    screen: Annotated[
        tuple[int, int],
        WithJsonSchema({"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2}),
    ]
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

    model_config = _example(
        sessions=[
            {
                "session_id": _SESSION,
                "state": "ready",
                "seq": 3,
                "caller": "alice",
                "client_id": "run-7",
                "task_id": "open-the-moon",
                "desktop": 0,
                "age_s": 41.5,
                "idle_s": 2.25,
                "idle_timeout_s": 120.0,
            }
        ]
    )

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

    model_config = _example(
        desktops=[
            {"index": 0, "state": "leased", "strikes": 0, "reason": "", "session_id": _SESSION},
            {"index": 1, "state": "quarantined", "strikes": 2, "reason": "start failed: no space left"},
        ]
    )

    desktops: list[DesktopStatus]


class ResetPool(_Message):
    """Body of `POST /v1/pool/reset`. sessions: end the sessions, too, instead of waiting for their ends."""

    model_config = _example(sessions=False)

    sessions: bool = False
