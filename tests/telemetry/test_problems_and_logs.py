"""A request's trace is in what the env-server answers and logs, whether or not the server exports anything."""

from __future__ import annotations

import asyncio
import logging

import httpx
from scripted_desktop import TASK, Script, env_server, lost
from server_process import server_process
from test_env_server_wire import CLICK, asked, problem

from arpo.telemetry.logs import add_trace_id
from arpo.telemetry.phases import phase

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = {"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}


def test_every_problem_names_the_trace_of_its_request(tmp_path) -> None:
    async def question(http: httpx.AsyncClient, server) -> None:
        requests = [
            ("GET", "/no/such/path", 404, "not_found", {}),
            ("GET", "/v1/sessions/nobody", 404, "not_found", {}),
            ("GET", "/v1/capacity", 401, "unauthorized", {"Authorization": "Bearer wrong"}),
            ("POST", "/v1/sessions", 422, "invalid_request", {}),
        ]
        for method, path, status, code, headers in requests:
            reply = await http.request(method, path, headers={**TRACEPARENT, **headers})
            assert problem(reply, status, code).trace_id == TRACE
            reply = await http.request(method, path, headers=headers)
            assert problem(reply, status, code).trace_id is None, "of the request before"
            assert b"trace_id" not in reply.content
            reply = await http.request(method, path, headers={"traceparent": "00-nonsense", **headers})
            assert problem(reply, status, code).trace_id is None

    asked(tmp_path, question)


def test_a_bug_is_answered_with_its_trace(tmp_path) -> None:
    async def question(http: httpx.AsyncClient, server) -> None:
        server.server.manager.check_open = None  # not callable: any bug will do
        reply = await http.post("/v1/sessions", json={"task": TASK}, headers=TRACEPARENT)
        assert problem(reply, 500, "internal").trace_id == TRACE

    asked(tmp_path, question)


def test_the_problem_of_a_failed_operation_names_the_trace_of_whoever_asks(tmp_path) -> None:
    async def question(http: httpx.AsyncClient, server) -> None:
        created = (await http.post("/v1/sessions", json={"task": TASK}, headers=TRACEPARENT)).json()
        path = f"/v1/sessions/{created['session_id']}"
        await http.get(path, params={"wait_s": 5})
        step = {"lease": created["lease"], "seq": 1, "actions": [CLICK]}
        reply = await http.post(f"{path}/step", json=step, headers=TRACEPARENT)
        assert problem(reply, 502, "desktop_lost").trace_id == TRACE

    asked(tmp_path, question, Script(execute=lambda desktop: lost()))


def test_pipelined_requests_have_their_own_traces_or_none(tmp_path) -> None:
    async def main() -> list[bytes]:
        async with env_server(tmp_path) as server:
            host, port = server.url.removeprefix("http://").split(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            head = f"Host: x\r\nAuthorization: {server.headers['Authorization']}\r\n"
            first = f"GET /a HTTP/1.1\r\n{head}traceparent: {TRACEPARENT['traceparent']}\r\n\r\n"
            second = f"GET /b HTTP/1.1\r\n{head}Connection: close\r\n\r\n"
            writer.write((first + second).encode())
            answers = (await reader.read()).split(b"HTTP/1.1 ")[1:]
            writer.close()
            return answers

    one, two = asyncio.run(main())
    assert TRACE.encode() in one
    assert b"trace_id" not in two


def test_what_the_pool_does_in_the_background_is_in_nobodys_trace(tmp_path, caplog) -> None:
    def clean(desktop):
        return RuntimeError("not clean")

    async def question(http: httpx.AsyncClient, server) -> None:
        created = (await http.post("/v1/sessions", json={"task": TASK}, headers=TRACEPARENT)).json()
        path = f"/v1/sessions/{created['session_id']}"
        await http.get(path, params={"wait_s": 5})
        await http.delete(path, headers=TRACEPARENT)
        pool = server.server.manager.pool
        while not any(slot.strikes for slot in pool.slots):
            await asyncio.sleep(0.01)

    caplog.handler.addFilter(add_trace_id)
    with caplog.at_level(logging.INFO):
        asked(tmp_path, question, Script(clean=clean))
    traces = {record.message.partition(",")[0].partition(":")[0]: record.trace for record in caplog.records}
    assert traces["desktop 0"] == ""
    assert {trace for text, trace in traces.items() if text.startswith("session")} == {f" trace_id={TRACE}"}


def test_the_servers_log_lines_end_with_the_trace(tmp_path) -> None:
    with server_process(tmp_path) as server:
        headers = {"Authorization": f"Bearer {server.token}"}
        with httpx.Client(base_url=server.url, headers=headers) as http:
            while not http.get("/readyz").is_success:
                pass
            created = http.post("/v1/sessions", json={"task": TASK}, headers=TRACEPARENT).json()
            http.delete(f"/v1/sessions/{created['session_id']}")
        server.stop()
        (leased,) = [line for line in server.log.splitlines() if "task 't' on desktop" in line]
        (closed,) = [line for line in server.log.splitlines() if " closed: its client released it" in line]
        assert leased.endswith(f" trace_id={TRACE}")
        assert "trace_id" not in closed


def test_a_reset_says_where_its_time_went_until_something_else_is_done(tmp_path) -> None:
    async def reset(desktop) -> None:
        with phase("setup"):
            await asyncio.sleep(0.02)

    async def question(http: httpx.AsyncClient, server) -> None:
        created = (await http.post("/v1/sessions", json={"task": TASK})).json()
        path = f"/v1/sessions/{created['session_id']}"
        ready = await http.get(path, params={"wait_s": 5})
        assert "setup;dur=" in ready.headers["server-timing"]
        body = {"lease": created["lease"], "seq": 1, "actions": []}
        assert (await http.post(f"{path}/step", json=body)).status_code == 200
        assert "server-timing" not in (await http.get(path)).headers

    asked(tmp_path, question, Script(reset=reset))
