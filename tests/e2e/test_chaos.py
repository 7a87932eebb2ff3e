"""What nobody plans for, through the real door: a killed server, killed and stopped programs, full disks, hostile tasks
and bodies, storms, and an end in the middle of things. After each the server goes on: a fresh session scores 1.0.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from chaos import (
    command_line,
    door,
    marked,
    nothing_left_behind,
    refused,
    typed,
    typing_task,
    until,
)
from server_process import descendants, kill, wait_gone

CLICK = {"kind": "click", "x": 600, "y": 470}
SHEET = typing_task(
    "xvfb", config=[{"type": "launch", "parameters": {"command": ["soffice", "--calc", "--norestore"]}}]
)


@pytest.fixture(autouse=True)
def own_tmp(monkeypatch) -> Iterator[Path]:
    """Everybody's temporary files are here, and gone at the end with every process."""
    with nothing_left_behind() as folder:
        monkeypatch.setenv("TMPDIR", str(folder))
        yield folder


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as executor:
        yield executor


@pytest.mark.xvfb
@pytest.mark.slow
def test_of_a_killed_server_nothing_is_left_and_its_successor_serves(tmp_path, own_tmp) -> None:
    with door(tmp_path, "--capacity", "2", provider="xvfb") as first:
        sessions = [first.open(), first.open(SHEET)]
        sessions[0].step(typed("xvfb", "42"))
        assert sessions[0].evaluate().json() == {"score": 1.0}  # so that an evaluator process runs, too
        assert first.programs("soffice")
        below = descendants(first.process.pid)
        first.process.process.kill()
        first.process.process.wait()
        assert not wait_gone(below), [command_line(pid) for pid in below]
        (tmp_path / "url").unlink()
        with door(
            tmp_path, "--capacity", "2", provider="xvfb", port=urlsplit(first.process.url).port
        ) as second:
            assert second.process.url == first.process.url
            for session in sessions:
                session.http = second.http
                refused(second.http.get(session.path), "backend_lost")
                refused(session.send([CLICK]), "backend_lost")
                refused(session.evaluate(), "backend_lost")
                refused(second.http.delete(session.path), "backend_lost")
            second.goes_on()
            assert second.process.stop() == 0


@pytest.mark.xvfb
@pytest.mark.slow
def test_programs_of_a_desktop_that_are_killed_cost_that_session_at_most(tmp_path) -> None:
    with door(tmp_path, "--capacity", "2", provider="xvfb") as server:
        bystander = server.open()
        office = server.open(SHEET)
        until(lambda: bool(server.programs("soffice.bin")), "no soffice")
        for pid in server.programs("soffice"):
            kill(pid)
        # A program that ends is the agent's world and no fault: what was not written is not there.
        office.step([CLICK])
        assert office.evaluate().json() == {"score": 0.0}
        office.close()

        victim = server.open(marked(typing_task("xvfb"), 771_001))
        (screen,) = server.desktop_of(771_001, "Xvfb")
        kill(screen)
        for _ in range(2):
            refused(victim.send([CLICK]), "desktop_lost")
        assert victim.view()["problem"]["code"] == "desktop_lost"
        bystander.step(typed("xvfb", "42"))
        assert bystander.evaluate().json() == {"score": 1.0}
        for session in (victim, bystander):
            session.close()
        server.goes_on()


@pytest.mark.xvfb
@pytest.mark.slow
def test_a_desktop_that_stands_still_ends_in_time_and_slows_nobody_down(tmp_path, threads) -> None:
    with door(tmp_path, "--capacity", "2", "--step-timeout-s", "3", provider="xvfb") as server:
        bystander = server.open()
        victim = server.open(marked(typing_task("xvfb"), 771_002))
        world = server.desktop_of(771_002)
        for pid in server.desktop_of(771_002, "arpo_guest"):
            os.kill(pid, signal.SIGSTOP)
        stuck = threads.submit(victim.send, [CLICK])
        others = 0
        while not stuck.done():
            bystander.step([CLICK])
            others += 1
        assert others > 10, "steps of another session waited for the one that stood still"
        refused(stuck.result(), "step_timeout", "desktop_lost")
        # 3 s for the step, and 5 s for whether the guest still answers
        assert stuck.result().elapsed.total_seconds() < 3 + 5 + 5
        assert not wait_gone(world), "the desktop that stood still is still there"
        bystander.step(typed("xvfb", "42"))
        assert bystander.evaluate().json() == {"score": 1.0}
        for session in (victim, bystander):
            session.close()
        server.goes_on()


@pytest.mark.xvfb
@pytest.mark.slow
def test_a_full_disk_is_the_sessions_own(tmp_path) -> None:
    """A home is 4 GiB of memory at most; all of it is taken."""
    if available_memory() < 8 << 30:
        pytest.skip("less than 8 GiB of memory are free: to fill a desktop's home takes half of that")
    fill = {
        "type": "execute",
        "parameters": {"command": "fallocate -l 4090M ~/fill; head -c 1G /dev/zero > ~/rest", "shell": True},
    }
    with door(tmp_path, provider="xvfb") as server:
        # While it works, an agent that writes what cannot be written sees its desktop and fails at its task.
        task = typing_task("xvfb")
        full = server.open(task | {"config": [fill, *task["config"]]})
        full.step(typed("xvfb", "42"))
        assert full.evaluate().json() == {"score": 0.0}
        full.close()
        # A setup that cannot write is told with the reason.
        download = {
            "type": "download",
            "parameters": {"files": [{"url": "data:;base64," + "QUFB" * 40_000, "path": "~/big"}]},
        }
        failed = server.create(task | {"config": [fill, download]})
        view = failed.view(wait_s=25)
        assert (view["state"], view["problem"]["code"]) == ("failed", "setup_failed"), view
        assert "download" in view["problem"]["detail"]
        failed.close()
        server.goes_on()


WAIT = b'{"kind": "wait"}'
BODIES = {
    "10 MB": (b'{"lease": 1, "seq": 1, "actions": [' + b" " * 10_000_000 + b"]}", 413, "payload_too_large"),
    "10 000 actions": (
        b'{"lease": 1, "seq": 1, "actions": [' + b",".join([WAIT] * 10_000) + b"]}",
        422,
        "invalid_action",
    ),
    "no UTF-8": (
        b'{"lease": 1, "seq": 1, "actions": [{"kind": "type", "text": "\xff\xfe"}]}',
        422,
        "invalid_request",
    ),
}


@pytest.mark.parametrize(("content", "status", "code"), BODIES.values(), ids=BODIES)
def test_a_body_that_cannot_be_meant_changes_nothing(
    tmp_path, content: bytes, status: int, code: str
) -> None:
    with door(tmp_path, provider="simulated") as server:
        session = server.open()
        before = session.view()
        reply = server.http.post(
            f"{session.path}/step", content=content, headers={"Content-Type": "application/json"}
        )
        assert (refused(reply, code).code.value, reply.status_code) == (code, status)
        refused(
            server.http.post("/v1/sessions", content=content, headers={"Content-Type": "application/json"}),
            "payload_too_large",
            "invalid_request",
            "invalid_task",
        )
        assert session.view() == before
        session.step(typed("simulated", "42"))
        assert session.evaluate().json() == {"score": 1.0}
        session.close()
        server.goes_on()


UP = "../" * 12


def hostile(host_file: Path) -> dict[str, dict]:
    """Tasks that try to read a file of the host, or to write one beside it."""
    outside, secret = f"{UP}{host_file.parent}/written", f"{UP}{host_file}"

    def setup(kind: str, **parameters: object) -> dict:
        return {"config": [{"type": kind, "parameters": parameters}]}

    def getter(**result: object) -> dict:
        rule = {"type": "rule", "rules": {"expected": "x", "type": "text"}}
        return {"evaluator": {"func": "exact_match", "result": result, "expected": rule}}

    def fetched(url: str) -> dict:
        return setup("download", files=[{"url": url, "path": "/home/user/got.txt"}])

    return {
        "a URL of a file": fetched(f"file://{host_file}"),
        "a suite's URL that leads up": fetched(f"suite:local/{secret}"),
        "a path as URL": fetched(str(host_file)),
        "a download to a path that leads up": setup(
            "download", files=[{"url": "data:,evil", "path": outside}, {"url": "data:,x", "path": f"{UP}etc/shadow"}]
        ),
        "an upload of a host file": setup("upload_file", files=[{"local_path": str(host_file), "path": "~/got.txt"}]),
        "an upload that leads up": setup("upload_file", files=[{"local_path": secret, "path": "~/got.txt"}]),
        "an output that leads up": setup("execute", command=["echo", "evil"], stdout=outside),
        "a program's file": setup("execute", command=["cat", str(host_file), "/etc/shadow"], stdout="out"),
        "a guest file of that name": getter(type="vm_file", path=str(host_file), dest="copy"),
        "a copy that leads up": getter(type="vm_file", path="/home/user/some.txt", dest=outside),
        "a copy with an absolute name": getter(type="vm_file", path="/home/user/some.txt", dest=str(host_file)),
        "a cached file that leads up": getter(type="cache_file", path=secret),
        "a cloud file of the host": getter(type="cloud_file", path=f"file://{host_file}", dest="copy"),
        "a cloud file that leads up": getter(type="cloud_file", path="data:,evil", dest=outside),
        "content that leads up": getter(type="content_from_vm_file", path=secret, file_type="txt", file_content="x"),
        "a folder that leads up": getter(type="list_directory", path=f"{UP}{host_file.parent}"),
    }  # fmt: skip


@pytest.mark.parametrize(
    "provider", ["simulated", pytest.param("xvfb", marks=[pytest.mark.xvfb, pytest.mark.slow])]
)
def test_no_task_reads_or_writes_a_file_of_the_host(tmp_path, provider: str) -> None:
    folder = tmp_path / "host"
    folder.mkdir()
    secret = folder / "secret"
    secret.write_text("root:$y$j9T$nobody-may-read-this:19000\n")
    with door(tmp_path, provider=provider) as server:
        for name, task in hostile(secret).items():
            some = {
                "type": "execute",
                "parameters": {"command": ["sh", "-c", "echo hi > /home/user/some.txt"]},
            }
            body = typing_task(provider, **task)
            session = server.create(body | {"config": [some, *body["config"]]})
            answers = [server.http.get(session.path, params={"wait_s": 25})]
            view = answers[0].json()
            if view["state"] == "ready":
                answers += [session.send([CLICK]), session.evaluate(), server.http.get(session.path)]
                assert answers[1].status_code == 200, (name, answers[1].text)
                if answers[2].status_code != 200:
                    refused(answers[2], "evaluator_failed")
                else:
                    assert answers[2].json() == {"score": 0.0}, name
            else:
                assert view["problem"]["code"] in ("invalid_task", "setup_failed"), (name, view)
            assert not any("nobody-may-read-this" in answer.text for answer in answers), name
            assert [path.name for path in folder.iterdir()] == ["secret"], name
            assert "nobody-may-read-this" in secret.read_text(), name
            session.close()
        assert "nobody-may-read-this" not in server.process.log
        server.goes_on()


def test_a_storm_of_screenshots_changes_nothing_for_the_one_that_steps(tmp_path, threads) -> None:
    with door(tmp_path, "--capacity", "2", provider="simulated") as server:
        watched, stepping = server.open(), server.open()
        still = watched.view()
        storm = [threads.submit(watched.view) for _ in range(400)]
        count = 0
        while not all(question.done() for question in storm) or count < 20:
            count += 1
            assert stepping.step([{"kind": "type", "text": "x"}])["seq"] == count
        assert all(question.result() == still for question in storm)
        for session in (watched, stepping):
            session.close()
        server.goes_on()


@pytest.mark.xvfb
@pytest.mark.slow
def test_a_step_that_runs_when_the_server_is_told_to_stop_is_answered(tmp_path, threads) -> None:
    with door(tmp_path, provider="xvfb") as server:
        session = server.open()
        write = typed("xvfb", "42")
        running = threads.submit(session.send, [{"kind": "wait", "seconds": 2}, *write])
        until(lambda: session.view()["state"] == "stepping", "the step does not begin")
        server.process.process.send_signal(signal.SIGTERM)
        until(lambda: server.http.get("/readyz").status_code == 503, "it takes new work")
        refused(server.http.post("/v1/sessions", json={"task": typing_task("xvfb")}), "capacity")
        reply = running.result()
        assert (reply.status_code, reply.json()["seq"]) == (200, 1), reply.text
        assert server.process.process.wait(30) == 0
        assert "Traceback" not in server.process.log


@pytest.mark.parametrize(("grace_s", "wanted"), [("20", 1.0), ("0.5", "backend_lost")])
def test_an_evaluation_that_runs_when_the_server_is_told_to_stop_has_its_grace(
    tmp_path, threads, grace_s: str, wanted: float | str
) -> None:
    task = typing_task("simulated")
    task["evaluator"]["postconfig"] = [{"type": "sleep", "parameters": {"seconds": 3}}]
    with door(tmp_path, "--drain-s", grace_s, provider="simulated") as server:
        session = server.open(task)
        session.step(typed("simulated", "42"))
        running = threads.submit(session.evaluate)
        until(lambda: session.view()["state"] == "evaluating", "the evaluation does not begin")
        server.process.process.send_signal(signal.SIGTERM)
        if isinstance(wanted, float):
            assert running.result().json() == {"score": wanted}, running.result().text
        else:
            assert "shutting down" in refused(running.result(), wanted).detail
        assert server.process.process.wait(30) == 0
        assert "Traceback" not in server.process.log


def available_memory() -> int:
    """Bytes."""
    (line,) = [x for x in Path("/proc/meminfo").read_text().splitlines() if x.startswith("MemAvailable")]
    return int(line.split()[1]) * 1024
