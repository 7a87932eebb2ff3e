"""What a guest answers, read within bounds.

An agent, or a task, decides how large a file, a screen or a command's output in a guest is, and may have replaced the
programs there. The env-server serves many others in the same process.

Invariants
- No answer costs more memory than its `Bound`, give or take a chunk: a longer one is an error, never a part of it.
- What is no answer of the expected shape is a `GuestError`.
- Nothing here keeps the event loop for long. JSON is decoded on it, since decoding holds Python's lock in any thread;
  that is why text has a smaller bound than files.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx
from pydantic import TypeAdapter, ValidationError

from arpo.guest_client.base import GuestError

T = TypeVar("T")

MAX_FILE_BYTES = 64 * 2**20
"""The largest file that is read from a guest."""

MAX_SCREENSHOT_BYTES = 32 * 2**20
"""The largest screenshot; a 4K screen of noise has 24 MiB."""

MAX_TEXT_BYTES = 8 * 2**20
"""The largest JSON answer with text in it: what a command printed, a terminal's text, the accessibility tree."""

MAX_TREE_BYTES = 2 * 2**20
"""The largest directory tree, as JSON; some 50 000 files. Many small objects take longer to decode than text."""

_MAX_REST_BYTES = 2**20
_SHOWN = 1000  # characters of a refusal that a message repeats


@dataclass(frozen=True)
class Bound:
    """How many bytes an answer may have. what: what it holds, for the message."""

    bytes: int
    what: str


SCREENSHOT = Bound(MAX_SCREENSHOT_BYTES, "the screenshot")

REST = Bound(_MAX_REST_BYTES, "the answer")
"""For answers that only say that something was done, or why not."""


@dataclass(frozen=True)
class Answer:
    """A guest's answer. status: HTTP's."""

    status: int
    body: bytes

    def parsed(self, shape: TypeAdapter[T]) -> T:
        """The body, which is JSON of this shape; other fields are ignored. Raises GuestError."""
        try:
            return shape.validate_json(self.body)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            place = ".".join(str(part) for part in first["loc"])
            raise GuestError(
                f"the guest answered what was not asked for: {place or 'the body'}: {first['msg']}"
            ) from error

    def json(self) -> Any:
        """The body as JSON of any shape, with names that are no Unicode in it. Raises GuestError."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError) as error:
            raise GuestError(f"the guest answered no JSON: {type(error).__name__}") from error

    def reason(self) -> str:
        """Why the guest refused, in its own words."""
        try:
            message = str(json.loads(self.body)["message"])
        except (ValueError, KeyError, TypeError, RecursionError):
            message = self.body[: 4 * _SHOWN].decode("utf-8", "replace")
        return f"{self.status}: {message[:_SHOWN]}"


async def read_body(response: httpx.Response, bound: Bound) -> bytes:
    """The body of a streamed response.

    Raises GuestError as soon as it is known to be too large, which may be before anything was read, and httpx's errors.
    Close the response after an error: the rest is not read.
    """
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding != "identity":  # a few bytes could unfold into anything; it was not asked for
        raise GuestError(f"{bound.what} came with the encoding {encoding[:50]!r}")
    length = response.headers.get("Content-Length", "")
    if length.isdecimal() and int(length) > bound.bytes:
        raise _too_large(bound)
    body = bytearray()
    async for chunk in response.aiter_raw():
        if len(body) + len(chunk) > bound.bytes:
            raise _too_large(bound)
        body += chunk
    return bytes(body)


def _too_large(bound: Bound) -> GuestError:
    return GuestError(
        f"{bound.what} is larger than {bound.bytes >> 20} MiB, the most that is read from a guest"
    )
