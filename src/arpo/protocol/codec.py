"""Messages as bytes: JSON by default, MessagePack where it was asked for.

Invariant: both encodings carry the same document; only the picture differs (base64 text in JSON, raw bytes in
MessagePack). Errors are always JSON (`PROBLEM_JSON`).
"""

from __future__ import annotations

import json
import re
from typing import Any, TypeVar, cast

import msgpack
from pydantic import BaseModel, ValidationError

JSON = "application/json"
MSGPACK = "application/msgpack"
PROBLEM_JSON = "application/problem+json"

M = TypeVar("M", bound=BaseModel)

_NEVER = re.compile(r";\s*q=0(\.0*)?\s*(;|$)")


class CodecError(ValueError):
    """The bytes are not the message that they should be; the message says where, on one line."""


def media_type(header: str | None) -> str:
    """The media type in a `Content-Type` header, lower case, without parameters; JSON when there is none."""
    return (header or JSON).partition(";")[0].strip().lower()


def negotiate(accept: str | None) -> str:
    """The encoding for an `Accept` header: whichever of the two it names first; JSON if neither."""
    for entry in (accept or "").split(","):
        wanted = media_type(entry)
        if wanted in (JSON, MSGPACK) and not _NEVER.search(entry):
            return wanted
    return JSON


def encode(message: BaseModel, encoding: str = JSON) -> bytes:
    """A message as bytes in `JSON` or `MSGPACK`."""
    if encoding == MSGPACK:
        return cast(bytes, msgpack.packb(message.model_dump()))
    return message.model_dump_json().encode()


def decode(kind: type[M], data: bytes, encoding: str = JSON) -> M:
    """A message from bytes. Raises CodecError."""
    try:
        if encoding == MSGPACK:
            return kind.model_validate(unpack(data))
        return kind.model_validate_json(data)
    except ValidationError as error:
        raise CodecError(f"not a {kind.__name__}: {readable(error)}") from error


def unpack(data: bytes) -> Any:
    """The document in MessagePack bytes. Raises CodecError."""
    try:
        return msgpack.unpackb(data)
    except (ValueError, TypeError) as error:
        raise CodecError(f"not MessagePack: {error}") from error


def msgpack_to_json(data: bytes) -> bytes:
    """A request body as JSON. Raises CodecError for what JSON cannot say: requests hold no bytes, no NaN."""
    try:
        return json.dumps(unpack(data), allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise CodecError(f"not a request: {error}") from error
    except RecursionError as error:
        raise CodecError("not a request: nested too deeply") from error


def readable(error: ValidationError) -> str:
    """The first problem of a validation, on one line."""
    first, *more = error.errors(include_url=False, include_context=False, include_input=False)
    where = ".".join(str(part) for part in first["loc"])
    return f"{where}: {first['msg']}" + (f" (and {len(more)} more)" if more else "")
