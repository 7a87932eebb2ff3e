"""Steps that take long, clients that send slowly, and what is no HTTP: over a real socket."""

from __future__ import annotations

import asyncio
import json
import socket
import time

import pytest
from scripted_desktop import TASK, TOKEN, Script
from test_env_server_wire import CLICK, asked, opened, problem

from arpo.protocol.codec import MSGPACK, PROBLEM_JSON
from arpo.protocol.problems import Problem
from arpo.server.app import HttpLimits
from arpo.telemetry.phases import phase


def test_a_long_step_is_polled_by_sending_it_again_and_happens_once(tmp_path) -> None:
    go_on = asyncio.Event()
    script = Script(execute=lambda desktop: go_on.wait())

    async def question(http, server) -> None:
        path, lease = await opened(http)
        body = {"lease": lease, "seq": 1, "actions": [CLICK]}
        for _ in range(3):
            waiting = await http.post(f"{path}/step", params={"wait_s": 0.02}, json=body)
            assert (waiting.status_code, waiting.json()["state"]) == (202, "stepping")
        joined = asyncio.create_task(http.post(f"{path}/step", json=body))
        await asyncio.sleep(0.05)
        go_on.set()
        assert (await joined).status_code == 200
        assert (await http.post(f"{path}/step", params={"wait_s": 0}, json=body)).json() == (
            await joined
        ).json()
        assert len(server.script.executed) == 1

    asked(tmp_path, question, script)


def test_no_request_may_wait_longer_than_proxies_do(tmp_path) -> None:
    async def question(http, server) -> None:
        path, lease = await opened(http)
        step = {"lease": lease, "seq": 1, "actions": []}
        problem(await http.post(f"{path}/step", params={"wait_s": 25.1}, json=step), 422, "invalid_request")
        problem(await http.get(path, params={"wait_s": 26}), 422, "invalid_request")

    asked(tmp_path, question)


def test_a_step_says_where_its_time_went(tmp_path) -> None:
    async def question(http, server) -> str:
        path, lease = await opened(http, screenshot={"format": "webp"})
        reply = await http.post(f"{path}/step", json={"lease": lease, "seq": 1, "actions": [CLICK]})
        return reply.headers["server-timing"]

    assert "encode;dur=" in asked(tmp_path, question)


def raw(sent: bytes, *, pause_s: float = 0.0, then: bytes = b"", **limits) -> tuple[bytes, float]:
    """What the server answers to bytes, until it closes the connection, and after how many seconds."""

    async def question(http, server):
        def talk() -> tuple[bytes, float]:
            address = (http.base_url.host, http.base_url.port)
            with socket.create_connection(address, timeout=20) as connection:
                started = time.monotonic()
                connection.sendall(sent)
                if then:
                    time.sleep(pause_s)
                    connection.sendall(then)
                answer = b""
                while data := connection.recv(65536):
                    answer += data
                return answer, time.monotonic() - started

        return await asyncio.to_thread(talk)

    return asked(limits.pop("folder"), question, limits=HttpLimits(**limits))


def read(answer: bytes) -> tuple[int, Problem]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert PROBLEM_JSON.encode() in head.lower(), answer
    return int(head.split()[1]), Problem.model_validate_json(body)


@pytest.mark.parametrize("start", [b"", b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Slow: "])
def test_a_header_that_does_not_come_ends_the_connection(tmp_path, start: bytes) -> None:
    answer, _ = raw(start, folder=tmp_path, header_timeout_s=0.3)
    status, found = read(answer)
    assert (status, found.code.value) == (408, "request_timeout")
    assert "0.3 s" in found.detail


def test_a_second_request_on_a_connection_must_arrive_in_time_too(tmp_path) -> None:
    request = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    answer, _ = raw(request, then=b"GET /heal", pause_s=0.2, folder=tmp_path, header_timeout_s=0.3)
    first, _, second = answer.partition(b'{"status":"ok"}')
    assert first.startswith(b"HTTP/1.1 200")
    assert read(second)[0] == 408


def test_an_idle_connection_is_kept_longer_than_a_header_may_take(tmp_path) -> None:
    request = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    last = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    answer, _ = raw(request, then=last, pause_s=0.8, folder=tmp_path, header_timeout_s=0.3)
    assert answer.count(b'{"status":"ok"}') == 2


def test_a_body_that_does_not_come_is_a_timeout_and_not_an_error_of_the_server(tmp_path) -> None:
    head = f"POST /v1/sessions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: 99\r\n\r\n{{"
    answer, _ = raw(head.encode(), folder=tmp_path, body_timeout_s=0.3)
    status, found = read(answer)
    assert (status, found.code.value) == (408, "request_timeout")


@pytest.mark.parametrize(
    "sent", [b"\x16\x03\x01\x02\x00", b"SSH-2.0-OpenSSH\r\n\r\n", b"GET / HTTP/9\r\n\r\n"]
)
def test_what_is_no_http_is_answered_with_a_problem(tmp_path, sent: bytes) -> None:
    answer, _ = raw(sent, folder=tmp_path, header_timeout_s=0.5)
    status, found = read(answer)
    assert (status, found.code.value) in {(400, "invalid_request"), (408, "request_timeout")}


def test_a_header_that_is_too_large_is_refused(tmp_path) -> None:
    answer, _ = raw(b"GET / HTTP/1.1\r\nX: " + b"x" * 40_000, folder=tmp_path)
    assert read(answer)[1].code.value == "invalid_request"


@pytest.mark.parametrize("body", [b"{", b'"\xff"', b"[" * 100_000, b'{"task": {"id": "\xc3"}}'])
def test_a_body_that_is_no_json_is_an_invalid_request(tmp_path, body: bytes) -> None:
    async def question(http, server) -> None:
        headers = {"Content-Type": "application/json"}
        problem(await http.post("/v1/sessions", content=body, headers=headers), 422, "invalid_request")

    asked(tmp_path, question)


def test_ten_thousand_actions_are_refused_and_none_is_performed(tmp_path) -> None:
    async def question(http, server) -> None:
        path, lease = await opened(http)
        body = {"lease": lease, "seq": 1, "actions": [CLICK] * 10_000}
        assert "64" in problem(await http.post(f"{path}/step", json=body), 422, "invalid_action").detail
        assert server.script.executed == []
        body["actions"] = [{"kind": "type", "text": "x" * 20_001}]
        problem(await http.post(f"{path}/step", json=body), 422, "invalid_action")
        assert (await http.post(f"{path}/step", json={**body, "actions": [CLICK]})).status_code == 200

    asked(tmp_path, question)


def test_a_storm_of_questions_takes_no_picture_and_slows_nothing_down(tmp_path) -> None:
    async def question(http, server) -> None:
        path, lease = await opened(http)
        replies = await asyncio.gather(*(http.get(path) for _ in range(300)))
        assert {reply.status_code for reply in replies} == {200}
        assert len({json.dumps(reply.json()) for reply in replies}) == 1
        body = {"lease": lease, "seq": 1, "actions": [CLICK]}
        assert (await http.post(f"{path}/step", json=body)).status_code == 200
        assert (server.script.executed, server.script.resets) == ([[server.script.executed[0][0]]], ["t"])

    asked(tmp_path, question)


def test_a_question_without_a_body_may_name_any_content_type(tmp_path) -> None:
    async def question(http, server) -> int:
        path, _ = await opened(http)
        return (await http.get(path, headers={"Content-Type": MSGPACK})).status_code

    assert asked(tmp_path, question) == 200


@pytest.mark.parametrize("depth", [100, 1000, 1023, 5000])
def test_a_body_nested_too_deeply_is_the_clients_fault_in_either_encoding(tmp_path, depth: int) -> None:
    packed = b"\x91" * depth + b"\xc0"
    written = b"[" * depth + b"null" + b"]" * depth

    async def question(http, server) -> None:
        path, _ = await opened(http)
        for url in ("/v1/sessions", f"{path}/step", f"{path}/evaluate", "/env/step"):
            for body, kind in ((packed, MSGPACK), (written, "application/json")):
                headers = {"Content-Type": kind}
                assert (await http.post(url, content=body, headers=headers)).status_code == 422, (url, kind)

    asked(tmp_path, question)


def test_a_step_types_so_much_text_and_no_more(tmp_path) -> None:
    async def question(http, server) -> None:
        path, lease = await opened(http)
        text = {"kind": "type", "text": "x" * 10_001}
        body = {"lease": lease, "seq": 1, "actions": [text, text]}
        assert (
            "20002 characters"
            in problem(await http.post(f"{path}/step", json=body), 422, "invalid_action").detail
        )
        body["actions"] = [text]
        assert (await http.post(f"{path}/step", json=body)).status_code == 200

    asked(tmp_path, question)


def test_timing_is_that_of_the_step_that_was_asked_for(tmp_path) -> None:
    async def execute(desktop) -> None:
        with phase("act"):
            await asyncio.sleep(0.001)

    async def question(http, server) -> None:
        path, lease = await opened(http)
        body = {"lease": lease, "seq": 1, "actions": [CLICK]}
        first = await http.post(f"{path}/step", json=body)
        assert "act;dur=" in first.headers["server-timing"]
        await http.post(f"{path}/evaluate", json={"lease": lease})
        assert "server-timing" not in (await http.post(f"{path}/step", json=body)).headers

    asked(tmp_path, question, Script(execute=execute))


def test_a_desktop_that_gives_up_its_own_call_fails_its_session(tmp_path) -> None:
    async def execute(desktop) -> None:
        raise asyncio.CancelledError

    async def question(http, server) -> None:
        path, lease = await opened(http)
        body = {"lease": lease, "seq": 1, "actions": [CLICK]}
        for _ in range(2):
            problem(await http.post(f"{path}/step", json=body), 502, "desktop_lost")

    asked(tmp_path, question, Script(execute=execute))


def test_a_client_id_cannot_forge_a_line_of_the_log(tmp_path) -> None:
    async def question(http, server) -> None:
        body = {"task": TASK, "options": {"client_id": "a\nFAKE \x1b[31m"}}
        problem(await http.post("/v1/sessions", json=body), 422, "invalid_request")

    asked(tmp_path, question)
