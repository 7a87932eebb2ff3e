from __future__ import annotations

import json
from base64 import b64encode

import msgpack
import pytest

from arpo.protocol.codec import JSON, MSGPACK, CodecError, decode, encode, msgpack_to_json, negotiate
from arpo.protocol.messages import Observation, Screenshot, SessionState, SessionView, StepRequest
from arpo.protocol.problems import ProblemCode, ProblemError

# Bytes that the standard and the URL-safe base64 alphabets spell differently.
PICTURE = bytes([0xFB, 0xEF, 0xBE, 0xFF, 0xFF, 0xFE])
VIEW = SessionView(
    session_id="s",
    state=SessionState.READY,
    seq=3,
    observation=Observation(screenshot=Screenshot(width=1, height=1, sha256="0", data=PICTURE)),
    problem=ProblemError(ProblemCode.CAPACITY, "ä", retry_after_s=0.5).problem,
)


@pytest.mark.parametrize("encoding", [JSON, MSGPACK])
def test_a_message_survives_the_wire(encoding: str) -> None:
    assert decode(SessionView, encode(VIEW, encoding), encoding) == VIEW


def test_pictures_are_standard_base64_in_json_and_raw_in_msgpack() -> None:
    assert json.loads(encode(VIEW))["observation"]["screenshot"]["data"] == b64encode(PICTURE).decode()
    assert msgpack.unpackb(encode(VIEW, MSGPACK))["observation"]["screenshot"]["data"] == PICTURE


@pytest.mark.parametrize(
    ("accept", "encoding"),
    [
        ("application/msgpack;q=0, application/json", JSON),
        ("application/msgpack; q=0.0", JSON),
        ("application/msgpack;q=0.5", MSGPACK),
        (None, JSON),
        ("", JSON),
        ("*/*", JSON),
        ("text/html", JSON),
        ("application/msgpack", MSGPACK),
        ("Application/MsgPack; q=0.9, */*", MSGPACK),
        ("application/json, application/msgpack", JSON),
    ],
)
def test_the_reply_has_the_encoding_that_was_asked_for(accept: str | None, encoding: str) -> None:
    assert negotiate(accept) == encoding


@pytest.mark.parametrize(
    ("data", "encoding"),
    [
        (b"", JSON),
        (b"{", JSON),
        (b"[]", JSON),
        (b"", MSGPACK),
        (b"\xc1", MSGPACK),
        (b"\x81\xa1a", MSGPACK),
        (b"\xff", JSON),
    ],
)
def test_what_is_no_message_is_one_error_on_one_line(data: bytes, encoding: str) -> None:
    with pytest.raises(CodecError) as caught:
        decode(StepRequest, data, encoding)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("document", [{"a": b"bytes"}, {"a": float("nan")}, {"a": msgpack.Timestamp(1)}])
def test_msgpack_that_json_cannot_say_is_refused(document) -> None:
    with pytest.raises(CodecError):
        msgpack_to_json(msgpack.packb(document))


def test_deeply_nested_msgpack_is_refused_and_does_not_crash() -> None:
    with pytest.raises(CodecError):
        msgpack_to_json(b"\x91" * 100_000 + b"\x00")
