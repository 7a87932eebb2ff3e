"""What the env-server answers to good and bad requests, over a real socket."""

from __future__ import annotations

import asyncio
import json
import logging
from base64 import b64decode

import httpx
import msgpack
import pytest
from scripted_desktop import TASK, TOKEN, Script, env_server, lost

from arpo.protocol.codec import MSGPACK, PROBLEM_JSON
from arpo.protocol.problems import Problem
from arpo.server.app import HttpLimits

CLICK = {"kind": "click", "x": 1, "y": 2}


def asked(folder, question, script: Script | None = None, **settings):
    """Run an env-server, ask it something with an authorised plain HTTP client, return the answer."""

    async def main():
        async with (
            env_server(folder, script, **settings) as server,
            httpx.AsyncClient(base_url=server.url, headers=server.headers, timeout=30) as http,
        ):
            await server.client.wait_ready(5)
            return await question(http, server)

    return asyncio.run(main())


async def opened(http: httpx.AsyncClient, **options) -> tuple[str, int]:
    reply = await http.post("/v1/sessions", json={"task": TASK, "options": options})
    assert reply.status_code == 201, reply.text
    created = reply.json()
    assert created["state"] == "resetting"
    assert reply.headers["location"] == f"/v1/sessions/{created['session_id']}"
    view = (await http.get(f"/v1/sessions/{created['session_id']}", params={"wait_s": 10})).json()
    assert view["state"] == "ready"
    return f"/v1/sessions/{created['session_id']}", created["lease"]


def problem(reply: httpx.Response, status: int, code: str) -> Problem:
    """The problem that a reply is; every error must be one."""
    assert (reply.status_code, reply.headers["content-type"]) == (status, PROBLEM_JSON), reply.text
    parsed = Problem.model_validate_json(reply.content)
    assert parsed.code.value == code, parsed
    return parsed


@pytest.mark.parametrize(
    "authorization",
    [None, "", TOKEN, "Bearer", f"Bearer {TOKEN}x", f"Basic {TOKEN}", f"Bearer {TOKEN[:-1]}", "Bearer \xff"],
)
def test_without_a_valid_token_nothing_is_told_but_health(tmp_path, authorization: str | None) -> None:
    async def question(http, server):
        headers = {} if authorization is None else {"Authorization": authorization.encode("latin-1")}
        async with httpx.AsyncClient(base_url=server.url, headers=headers) as stranger:
            paths = ["/v1/capacity", "/v1/sessions/x", "/no/such/path", "/openapi.json"]
            for path in paths:
                reply = await stranger.get(path)
                problem(reply, 401, "unauthorized")
                assert reply.headers["www-authenticate"] == "Bearer"
            problem(await stranger.post("/v1/sessions", json={"task": TASK}), 401, "unauthorized")
            assert (await stranger.get("/healthz")).json() == {"status": "ok"}
            assert (await stranger.get("/readyz")).status_code == 200
        return (await http.get("/v1/capacity")).json()

    assert asked(tmp_path, question)["free"] == 1


def test_tokens_can_be_rotated_while_the_server_runs(tmp_path) -> None:
    async def question(http, server):
        (tmp_path / "token").write_text(f"another\n{TOKEN}\n")
        another = {"Authorization": "Bearer another"}
        assert (await http.get("/v1/capacity", headers=another)).status_code == 200
        assert (await http.get("/v1/capacity")).status_code == 200
        (tmp_path / "token").write_text("another\n")
        problem(await http.get("/v1/capacity"), 401, "unauthorized")

    asked(tmp_path, question)


def test_the_token_is_in_no_log(tmp_path, caplog) -> None:
    async def question(http, server):
        await opened(http)
        await http.get("/no/such/path")
        await http.get("/v1/capacity", headers={"Authorization": "Bearer wrong-token"})

    # The tests' own client would log what it sends.
    logging.getLogger("httpcore").setLevel(logging.WARNING)
    with caplog.at_level(logging.DEBUG):
        asked(tmp_path, question, access_log=True)
    assert "/no/such/path" in caplog.text
    assert TOKEN not in caplog.text
    assert "wrong-token" not in caplog.text


def test_every_error_is_a_problem(tmp_path) -> None:
    async def question(http, server):
        path, lease = await opened(http)
        step = {"lease": lease, "seq": 1}
        problem(await http.get("/no/such/path"), 404, "not_found")
        problem(await http.get("/v1/sessions/nobody"), 404, "not_found")
        reply = await http.put(path)
        problem(reply, 405, "invalid_request")
        assert reply.headers["allow"]
        problem(await http.get(path, params={"wait_s": 26}), 422, "invalid_request")
        problem(await http.get(path, params={"wait_s": "soon"}), 422, "invalid_request")
        problem(
            await http.post(f"{path}/step", content=b"{", headers={"Content-Type": "application/json"}),
            422,
            "invalid_request",
        )
        problem(
            await http.post(f"{path}/step", content=b"\xc1", headers={"Content-Type": MSGPACK}),
            422,
            "invalid_request",
        )
        problem(
            await http.post(f"{path}/step", json={**step, "actions": [], "extra": 1}), 422, "invalid_request"
        )
        problem(
            await http.post(f"{path}/step", json={**step, "actions": [{"kind": "teleport"}]}),
            422,
            "invalid_action",
        )
        problem(
            await http.post(f"{path}/step", json={**step, "actions": [{**CLICK, "x": -1}]}),
            422,
            "invalid_action",
        )
        problem(
            await http.post(f"{path}/step", json={**step, "seq": 0, "actions": []}), 422, "invalid_request"
        )
        problem(await http.post(f"{path}/step", json={**step, "seq": 5, "actions": []}), 409, "seq_conflict")
        problem(
            await http.post(f"{path}/step", json={**step, "lease": lease + 1, "actions": []}),
            409,
            "lease_lost",
        )
        problem(await http.post(f"{path}/heartbeat", json={"lease": lease + 1}), 409, "lease_lost")
        problem(await http.post("/v1/sessions", json={"task": "calc"}), 422, "invalid_task")
        detail = problem(await http.post("/v1/sessions", json={"task": TASK}), 503, "capacity").detail
        assert "1 leased" in detail
        # Half a surrogate pair is JSON, but no UTF-8: it must not break the answer that quotes it.
        bad = json.dumps({"task": {**TASK, "evaluator": {"func": "\ud800", "result": {"type": "rule"}}}})
        assert bad.isascii()
        headers = {"Content-Type": "application/json"}
        problem(await http.post("/v1/sessions", content=bad, headers=headers), 422, "invalid_task")
        refused = problem(
            await http.post(
                "/v1/sessions",
                json={"task": {**TASK, "evaluator": {"func": "exact_macth", "result": {"type": "rule"}}}},
            ),
            422,
            "invalid_task",
        )
        assert "evaluator.func" in refused.detail
        assert "exact_match" in refused.detail
        return server.script.executed

    assert asked(tmp_path, question) == []


def test_a_body_that_is_too_large_is_refused_whether_it_says_so_or_not(tmp_path) -> None:
    async def chunks(size: int):
        for _ in range(size // 1000):
            yield b" " * 1000

    async def question(http, server):
        for size in (20_000, 200_000):
            problem(await http.post("/v1/sessions", content=b" " * size), 413, "payload_too_large")
            problem(await http.post("/v1/sessions", content=chunks(size)), 413, "payload_too_large")
        assert (
            await http.post("/v1/sessions", json={"task": {**TASK, "note": "x" * 9_000}})
        ).status_code == 201

    asked(tmp_path, question, limits=HttpLimits(max_body_bytes=10_000))


def test_a_bug_in_a_route_is_an_internal_problem_without_a_traceback(tmp_path, monkeypatch) -> None:
    async def question(http, server):
        monkeypatch.setattr(type(server.server.manager), "heartbeat", None)
        path, lease = await opened(http)
        return problem(await http.post(f"{path}/heartbeat", json={"lease": lease}), 500, "internal").detail

    assert "TypeError" in asked(tmp_path, question)


def test_json_and_msgpack_carry_the_same_document(tmp_path) -> None:
    async def question(http, server):
        path, lease = await opened(http)
        body = {"lease": lease, "seq": 1, "actions": [CLICK, {"kind": "type", "text": "ä\n"}]}
        packed = await http.post(
            f"{path}/step", content=msgpack.packb(body), headers={"Content-Type": MSGPACK, "Accept": MSGPACK}
        )
        as_json = await http.post(f"{path}/step", json=body)
        assert packed.headers["content-type"] == MSGPACK
        assert as_json.headers["content-type"] == "application/json"
        views = [
            await http.get(path, headers={"Accept": accept})
            for accept in (MSGPACK, "*/*", f"{MSGPACK};q=1, application/json")
        ]
        return (
            packed.content,
            as_json.content,
            [(v.headers["content-type"], v.content) for v in views],
            server.script.executed,
        )

    packed, as_json, views, executed = asked(tmp_path, question)
    first, second = msgpack.unpackb(packed), json.loads(as_json)
    picture = first["observation"]["screenshot"].pop("data")
    assert isinstance(picture, bytes)
    assert b64decode(second["observation"]["screenshot"].pop("data"), validate=True) == picture
    assert first == second
    assert [[action.kind for action in step] for step in executed] == [["click", "type"]]
    (kind, a), (_, b), (last, _) = views
    assert (kind, last) == (MSGPACK, MSGPACK)
    assert msgpack.unpackb(a)["seq"] == json.loads(b)["seq"] == 1


def test_readiness_says_why_not(tmp_path) -> None:
    async def question(http, server):
        assert (await http.get("/readyz")).json() == {"note": ""}
        path, _ = await opened(http)
        reply = await http.get("/readyz")
        assert "1 leased" in problem(reply, 503, "capacity").detail
        assert reply.headers["retry-after"] == "1"
        capacity = (await http.get("/v1/capacity")).json()
        assert (capacity["capacity"], capacity["free"], capacity["busy"]) == (1, 0, 1)
        assert (await http.delete(path)).status_code == 204
        assert (await http.get("/readyz")).status_code == 200

    asked(tmp_path, question)


def test_desktops_that_never_start_are_named_with_their_reason(tmp_path) -> None:
    async def main():
        async with env_server(tmp_path, Script(start=lambda count: lost())) as server:
            async with asyncio.timeout(5):
                while not (await server.client.capacity()).quarantined:
                    await asyncio.sleep(0.01)
            ready, reason = await server.client.ready()
            async with httpx.AsyncClient(base_url=server.url, headers=server.headers) as http:
                problem(await http.post("/v1/sessions", json={"task": TASK}), 503, "start_failed")
            return ready, reason

    ready, reason = asyncio.run(main())
    assert not ready
    assert "no guest today" in reason


def test_the_openapi_document_declares_problems_on_every_route(tmp_path) -> None:
    async def question(http, server):
        return (await http.get("/openapi.json")).json()

    document = asked(tmp_path, question)
    assert "Problem" in document["components"]["schemas"]
    assert "HTTPValidationError" not in document["components"]["schemas"]
    operations = {
        f"{method} {path}": operation
        for path, item in document["paths"].items()
        for method, operation in item.items()
    }
    assert set(operations) >= {"post /v1/sessions", "post /v1/sessions/{session_id}/step", "get /v1/capacity"}
    for operation in operations.values():
        assert operation["description"]
        for status, response in operation["responses"].items():
            if status == "default" or int(status) >= 400:
                assert list(response["content"]) == [PROBLEM_JSON]
    assert (
        "seq_conflict" in operations["post /v1/sessions/{session_id}/step"]["responses"]["409"]["description"]
    )
