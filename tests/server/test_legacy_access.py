"""Who gets in without a token."""

from __future__ import annotations

import pytest

from arpo.protocol.problems import ConfigError, ProblemCode, ProblemError
from arpo.server.legacy_access import LegacyAccess, legacy_access


def scope(path: str = "/env/step", **headers: str) -> dict:
    """An ASGI scope as a program of this machine sends it, with changed headers."""
    sent = {"host": "127.0.0.1:18082", "content_type": "application/json", **headers}
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in sent.items() if value]
    return {"type": "http", "method": "POST", "path": path, "headers": raw}


@pytest.mark.parametrize("path", ["/env/reset", "/env/step", "/env/evaluate", "/env/history_messages"])
def test_a_program_of_this_machine_needs_no_token_for_the_legacy_api(path: str) -> None:
    caller = LegacyAccess("127.0.0.1").caller(scope(path))
    assert caller is not None
    assert not caller.is_admin


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:15001", "127.0.0.1", "127.8.8.8:80", "[::1]", "[::1]:18082"]
)
def test_every_name_of_the_loopback_will_do(host: str) -> None:
    assert LegacyAccess("::1").caller(scope(host=host)) is not None


@pytest.mark.parametrize("path", ["/v1/sessions", "/v1/pool", "/metrics", "/openapi.json", "/env", "/"])
def test_everything_else_needs_a_token(path: str) -> None:
    assert LegacyAccess("127.0.0.1").caller(scope(path)) is None


@pytest.mark.parametrize("authorization", ["Bearer wrong", "Basic x", "Bearer"])
def test_a_wrong_token_is_not_no_token(authorization: str) -> None:
    assert LegacyAccess("127.0.0.1").caller(scope(authorization=authorization)) is None


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:18082"},
        {"host": "evil.example"},
        {"host": "127.0.0.1.evil.example:18082"},
        {"host": "localhost.evil.example"},
        {"host": "192.168.0.7:18082"},
        {"host": "0.0.0.0:18082"},
        {"host": ""},
        {"content_type": "text/plain"},
        {"content_type": "application/x-www-form-urlencoded"},
        {"content_type": "application/msgpack"},
        {"content_type": ""},
    ],
)
def test_what_a_web_page_could_send_is_forbidden(headers: dict[str, str]) -> None:
    with pytest.raises(ProblemError) as caught:
        LegacyAccess("127.0.0.1").caller(scope(**headers))
    assert (caught.value.code, caught.value.status) == (ProblemCode.FORBIDDEN, 403)


def test_two_hosts_are_none() -> None:
    twice = scope()
    twice["headers"].append((b"host", b"evil.example"))
    with pytest.raises(ProblemError, match="forbidden"):
        LegacyAccess("127.0.0.1").caller(twice)


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "10.0.0.1", "192.168.0.7", "2001:db8::1", "somewhere"])
def test_a_server_that_others_can_reach_refuses_to_go_without_tokens(address: str) -> None:
    with pytest.raises(ConfigError, match=r"ARPO_LEGACY_NO_TOKEN=1 .* fix: --host 127\.0\.0\.1"):
        legacy_access({"ARPO_LEGACY_NO_TOKEN": "1"}, address)


@pytest.mark.parametrize("environment", [{}, {"ARPO_LEGACY_NO_TOKEN": "0"}, {"ARPO_LEGACY_NO_TOKEN": ""}])
def test_without_the_variable_everybody_needs_a_token(environment: dict[str, str]) -> None:
    assert legacy_access(environment, "0.0.0.0") is None
    assert legacy_access(environment, "127.0.0.1") is None


def test_the_variable_is_0_or_1() -> None:
    with pytest.raises(ConfigError, match="neither 0 nor 1"):
        legacy_access({"ARPO_LEGACY_NO_TOKEN": "yes"}, "127.0.0.1")
    assert legacy_access({"ARPO_LEGACY_NO_TOKEN": "1"}, "127.0.0.1") is not None
