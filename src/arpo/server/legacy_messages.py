"""What `/env/*` and `/health` carry: the messages of ARPO's first remote env-server, field for field."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

MIN_PIXELS = 3_136
MAX_PIXELS = 2_116_800

MAX_PREDICTION = 100_000
"""Characters; many times what a policy says in one turn. A longer one is no action, and its history ends there."""

_PICTURE: dict[str, Any] = {
    "type": "image",
    "b64": "iVBORw0KGgo...",
    "min_pixels": MIN_PIXELS,
    "max_pixels": MAX_PIXELS,
}
_OPENING: list[Any] = [
    {"role": "system", "content": [{"type": "text", "text": "You are a helpful assistant."}]},
    {
        "role": "user",
        "content": [{"type": "text", "text": "You are a GUI agent. ... ## User Instruction\nOpen the moon."}],
    },
    {"role": "user", "content": [_PICTURE]},
]


class _Wire(BaseModel):
    # Clients of that time send more than was ever read.
    model_config = ConfigDict(extra="ignore", frozen=True)


class TextPart(_Wire):
    """Text of a message."""

    type: Literal["text"] = "text"
    text: str


class ImagePart(_Wire):
    """A screenshot: b64 is a PNG in standard base64, without a `data:` prefix; the bounds are those of its area when
    the policy's processor resizes it.
    """

    type: Literal["image"] = "image"
    b64: str
    min_pixels: int = MIN_PIXELS
    max_pixels: int = MAX_PIXELS


class LegacyMessage(_Wire):
    """A message of the conversation with the policy."""

    role: Literal["system", "user", "assistant"]
    content: tuple[Annotated[TextPart | ImagePart, Field(discriminator="type")], ...]


class LegacyReset(_Wire):
    """Body of `POST /env/reset`: an OSWorld task."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "task_config": {
                        "id": "demo",
                        "instruction": "Open the moon.",
                        "evaluator": {"func": "infeasible"},
                    }
                }
            ]
        }
    )

    task_config: dict[str, Any]


def _unicode(text: str) -> str:
    # JSON carries half a surrogate pair (a reply that was cut inside an emoji), the replies with the history do not.
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class LegacyStep(_Wire):
    """Body of `POST /env/step`: what the policy said."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"prediction": "Thought: There it is.\nAction: click(start_box='(212,90)')"}]
        }
    )

    prediction: Annotated[str, AfterValidator(_unicode)]


class LegacyObservation(_Wire):
    """Reply to a reset and to a step.

    obs_messages: the whole conversation; null when the episode is over or never began. format_reward: -1 when the
    prediction was no action, else 0.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"env_idx": 0, "obs_messages": _OPENING, "is_done": False, "format_reward": 0.0},
                {"env_idx": 0, "obs_messages": None, "is_done": True, "format_reward": -1.0},
            ]
        }
    )

    env_idx: int = 0
    obs_messages: tuple[LegacyMessage, ...] | None
    is_done: bool
    format_reward: float = 0.0


class LegacyHistory(_Wire):
    """Reply to `POST /env/history_messages`: the whole conversation, also after the end of the episode."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"history_messages": _OPENING}]})

    history_messages: tuple[LegacyMessage, ...]


class LegacyHealth(_Wire):
    """Reply to `GET /health`. capacity, free: desktops."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"status": "ok", "provider": "vmware", "version": "0.1.0", "capacity": 1, "free": 1}]
        }
    )

    status: Literal["ok"] = "ok"
    provider: str
    version: str
    capacity: int
    free: int
