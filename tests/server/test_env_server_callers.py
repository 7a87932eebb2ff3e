"""Who may do what: scopes, owners, shares, and creations that are sent twice."""

from __future__ import annotations

import asyncio
import gc

import httpx
from scripted_desktop import TASK, TOKEN, Script, env_server
from test_env_server_wire import opened, problem

from arpo.protocol.problems import ProblemCode, ProblemError
from arpo.tasks.model import Task

ALICE, NEW_ALICE, BOB, ADMIN, BACKEND = "alice-1", "alice-2", "bob-1", "admin-1", "backend-1"
TOKENS = f"""
{TOKEN}
{ALICE} trainer alice
{NEW_ALICE} trainer alice
{BOB} trainer bob
{ADMIN} admin ops
{BACKEND} backend
"""


def served(folder, story, *, capacity: int = 3, **settings):
    """Run an env-server with the tokens above; the story gets it and a client for a token."""

    async def main():
        (folder / "token").touch(mode=0o600)
        (folder / "token").write_text(TOKENS)
        async with env_server(folder, capacity=capacity, **settings) as server:
            await server.client.wait_ready(5)
            clients = []

            def of(token: str) -> httpx.AsyncClient:
                headers = {"Authorization": f"Bearer {token}"}
                clients.append(httpx.AsyncClient(base_url=server.url, headers=headers, timeout=30))
                return clients[-1]

            try:
                return await story(server, of)
            finally:
                for client in clients:
                    await client.aclose()

    return asyncio.run(main())


def test_a_session_exists_for_its_owner_and_for_admins_only(tmp_path) -> None:
    async def story(_, of) -> None:
        alice, bob, admin = of(ALICE), of(BOB), of(ADMIN)
        path, lease = await opened(alice)
        step = {"lease": lease, "seq": 1, "actions": []}
        problem(await bob.get(path), 404, "not_found")
        problem(await bob.post(f"{path}/step", json=step), 404, "not_found")
        problem(await bob.post(f"{path}/evaluate", json={"lease": lease}), 404, "not_found")
        problem(await bob.post(f"{path}/heartbeat", json={"lease": lease}), 404, "not_found")
        problem(await bob.delete(path), 404, "not_found")
        assert (await alice.post(f"{path}/step", json=step)).status_code == 200
        assert (await admin.get(path)).status_code == 200
        assert (await bob.get("/v1/sessions")).json() == {"sessions": []}
        for client in (alice, admin):
            (seen,) = (await client.get("/v1/sessions")).json()["sessions"]
            assert (seen["caller"], seen["seq"], seen["task_id"]) == ("alice", 1, "t")
        assert (await admin.delete(path)).status_code == 204
        assert "operator" in problem(await alice.post(f"{path}/step", json=step), 409, "lease_lost").detail

    served(tmp_path, story)


def test_a_token_is_replaced_while_its_sessions_go_on(tmp_path) -> None:
    async def story(server, of) -> None:
        path, lease = await opened(of(ALICE))
        (tmp_path / "token").write_text(TOKENS.replace(f"{ALICE} trainer alice", ""))
        problem(await of(ALICE).get(path), 401, "unauthorized")
        body = {"lease": lease, "seq": 1, "actions": []}
        assert (await of(NEW_ALICE).post(f"{path}/step", json=body)).status_code == 200

    served(tmp_path, story)


def test_a_token_is_good_for_its_scopes_only(tmp_path) -> None:
    async def story(_, of) -> None:
        for path in ("/metrics", "/v1/pool"):
            for token in (ALICE, BACKEND):
                assert "admin" in problem(await of(token).get(path), 403, "forbidden").detail
            assert (await of(ADMIN).get(path)).status_code == 200
        problem(await of(ALICE).post("/v1/pool/reset", json={}), 403, "forbidden")
        problem(await of(BACKEND).post("/v1/sessions", json={"task": TASK}), 403, "forbidden")
        assert (await of(BACKEND).get("/v1/capacity")).status_code == 200

    served(tmp_path, story)


def test_a_caller_gets_no_more_than_its_share_and_others_get_theirs(tmp_path) -> None:
    async def story(_, of) -> None:
        alice, bob = of(ALICE), of(BOB)
        path, _ = await opened(alice)
        refused = problem(await of(NEW_ALICE).post("/v1/sessions", json={"task": TASK}), 503, "capacity")
        assert "alice has 1 sessions" in refused.detail
        assert refused.retry_after_s
        await opened(bob)
        await alice.delete(path)
        await opened(alice)

    served(tmp_path, story, sessions_per_caller=1)


def test_a_creation_that_is_sent_again_makes_one_session(tmp_path) -> None:
    async def story(server, of) -> None:
        alice, bob = of(ALICE), of(BOB)
        key = {"Idempotency-Key": "k-1"}
        first = await alice.post("/v1/sessions", json={"task": TASK}, headers=key)
        again = await of(NEW_ALICE).post("/v1/sessions", json={"task": TASK}, headers=key)
        assert (first.status_code, again.status_code) == (201, 201)
        assert again.json()["session_id"] == first.json()["session_id"]
        assert again.json()["lease"] == first.json()["lease"]
        other = await bob.post("/v1/sessions", json={"task": TASK}, headers=key)
        assert other.json()["session_id"] != first.json()["session_id"]
        another = {"task": {**TASK, "id": "another"}}
        problem(await alice.post("/v1/sessions", json=another, headers=key), 422, "invalid_request")
        await alice.delete(first.headers["location"])
        closed = await alice.post("/v1/sessions", json={"task": TASK}, headers=key)
        assert (closed.json()["session_id"], closed.json()["state"]) == (first.json()["session_id"], "closed")
        assert sorted(server.script.resets) == ["t", "t"]

    served(tmp_path, story)


def test_a_creation_that_was_refused_may_be_repeated_with_its_key(tmp_path) -> None:
    async def story(_, of) -> None:
        alice, key = of(ALICE), {"Idempotency-Key": "k-1"}
        path, _ = await opened(alice)
        problem(await alice.post("/v1/sessions", json={"task": TASK}, headers=key), 503, "capacity")
        await alice.delete(path)
        while (await alice.get("/readyz")).status_code != 200:
            await asyncio.sleep(0.01)
        made = await alice.post("/v1/sessions", json={"task": TASK}, headers=key)
        assert made.status_code == 201

    served(tmp_path, story, capacity=1)


def test_operators_see_every_desktop_and_can_replace_them_all(tmp_path) -> None:
    async def story(server, of) -> None:
        alice, admin = of(ALICE), of(ADMIN)
        path, _ = await opened(alice)
        desktops = (await admin.get("/v1/pool")).json()["desktops"]
        assert [d["state"] for d in desktops] == ["leased", "free"]
        assert [d["session_id"] and path.endswith(d["session_id"]) for d in desktops] == [True, None]

        async def started(count: int) -> None:
            while server.script.started < count or (await alice.get("/v1/capacity")).json()["free"] < 1:
                await asyncio.sleep(0.01)

        assert (await admin.post("/v1/pool/reset", json={})).status_code == 200
        await started(3)
        assert (await alice.get(path)).json()["state"] == "ready"  # only when its session ends
        assert (await admin.post("/v1/pool/reset", json={"sessions": True})).status_code == 200
        ended = (await alice.get(path)).json()
        assert (ended["state"], ended["problem"]["code"]) == ("failed", "desktop_lost")
        await started(4)

    served(tmp_path, story, capacity=2)


def test_the_metrics_count_operations_problems_and_repeats(tmp_path) -> None:
    async def story(server, of) -> str:
        alice = of(ALICE)
        path, lease = await opened(alice)
        step = {"lease": lease, "seq": 1, "actions": []}
        for _ in range(3):
            await alice.post(f"{path}/step", json=step)
        problem(await alice.post(f"{path}/step", json={**step, "seq": 9}), 409, "seq_conflict")
        problem(await httpx.AsyncClient().get(f"{server.url}/v1/pool"), 401, "unauthorized")
        return (await of(ADMIN).get("/metrics")).text

    lines = served(tmp_path, story).splitlines()
    for line in (
        'arpo_operation_seconds_count{operation="step",outcome="ok"} 1.0',
        'arpo_operation_seconds_count{operation="reset",outcome="ok"} 1.0',
        'arpo_problems_total{code="seq_conflict",fault="client"} 1.0',
        'arpo_problems_total{code="unauthorized",fault="client"} 1.0',
        "arpo_step_repeats_total 2.0",
        'arpo_sessions{state="ready"} 1.0',
        'arpo_desktops{state="leased"} 1.0',
        'arpo_desktops{state="free"} 2.0',
    ):
        assert line in lines, line
    assert not any(token in line for token in (TOKEN, ALICE, ADMIN) for line in lines)


def test_a_silent_session_is_counted_as_reaped(tmp_path) -> None:
    async def story(_, of) -> None:
        alice, admin = of(ALICE), of(ADMIN)
        await opened(alice, idle_timeout_s=0.1)
        while "arpo_sessions_reaped_total 1.0" not in (await admin.get("/metrics")).text.splitlines():
            await asyncio.sleep(0.05)
        assert (await alice.get("/v1/sessions")).json() == {"sessions": []}

    served(tmp_path, story)


def test_nobody_else_finds_a_session_by_a_repeated_creation(tmp_path) -> None:
    async def story(_, of) -> None:
        key = {"Idempotency-Key": "shared"}
        answers = [await of(t).post("/v1/sessions", json={"task": TASK}, headers=key) for t in (ALICE, BOB)]
        assert len({answer.json()["session_id"] for answer in answers}) == 2

    served(tmp_path, story, script=Script())


def test_failed_sessions_count_until_they_are_closed(tmp_path) -> None:
    broken = Script(reset=lambda desktop: ProblemError(ProblemCode.SETUP_FAILED, "no"))

    async def story(_, of) -> None:
        alice = of(ALICE)
        made = await alice.post("/v1/sessions", json={"task": TASK})
        path = made.headers["location"]
        assert (await alice.get(path, params={"wait_s": 5})).json()["state"] == "failed"
        problem(await alice.post("/v1/sessions", json={"task": TASK}), 503, "capacity")
        await alice.delete(path)
        assert (await alice.post("/v1/sessions", json={"task": TASK})).status_code == 201

    served(tmp_path, story, script=broken, sessions_per_caller=1)


def test_a_closed_session_keeps_nothing_of_what_it_did(tmp_path) -> None:
    def tasks() -> int:
        gc.collect()
        return sum(type(thing) is Task for thing in gc.get_objects())

    broken = Script(execute=lambda desktop: ProblemError(ProblemCode.DESKTOP_LOST, "no"))
    text = {"kind": "type", "text": "x" * 10_000}

    async def story(server, of) -> None:
        alice = of(ALICE)
        before = tasks()
        for _ in range(5):
            path, lease = await opened(alice)
            body = {"lease": lease, "seq": 1, "actions": [text]}
            problem(await alice.post(f"{path}/step", json=body), 502, "desktop_lost")
            await alice.delete(path)
            while (await alice.get("/readyz")).status_code != 200:
                await asyncio.sleep(0.01)
        assert tasks() == before
        closed = [entry for entry in server.server.manager._sessions.all() if entry.session.problem]
        assert len(closed) == 5
        assert [(e.operation, e.session._running, e.session._applied) for e in closed] == [(None, [], [])] * 5

    served(tmp_path, story, script=broken)
