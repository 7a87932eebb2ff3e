"""OSWorld's container behind our interface, by the real Docker SDK against a stand-in daemon.

Nobody has run this on a real daemon with OSWorld's image: what is proven is what we ask of Docker and do with its
answers.
"""

from __future__ import annotations

import asyncio
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from docker_kit import DockerHost
from provider_errors import refusal, start_error
from server_process import arguments, server_process

from arpo.client import EnvClient
from arpo.guest_client import GuestError, Settle
from arpo.protocol.actions import Click, Finished, Type
from arpo.providers.base import Provider
from arpo.providers.osworld.docker import IMAGE
from arpo.providers.registry import make_provider

pytest.importorskip("docker", reason="pip install 'arpo[docker]'")
pytest.importorskip("desktop_env")

SCREEN = (640, 480)
QUICK = Settle(quiet_s=0.1, ceiling_s=2.0)
TASK = {
    "id": "greet",
    "instruction": "Type the greeting.",
    "evaluator": {
        "func": "exact_match",
        "result": {"type": "vm_command_line", "command": "cat typed.txt; ls", "shell": True},
        "expected": {
            "type": "rule",
            "rules": {"expected": "hello\nevents.jsonl\ninstalled.txt\ntyped.txt\n"},
        },
    },
}


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DockerHost]:
    host = DockerHost(tmp_path)
    monkeypatch.setenv("DOCKER_HOST", host.url)
    yield host
    host.stop()


def provider_of(docker: DockerHost, **options: object) -> Provider:
    options = {"start_timeout_s": 20.0, "vm_path": str(docker.disk), **options}
    return make_provider("docker", screen=SCREEN, **options)


def test_a_desktop_is_a_new_container_each_time_and_none_is_left(docker) -> None:
    async def story() -> None:
        provider = provider_of(docker, ram="2G", cores=2)
        await provider.preflight()
        guest = await provider.start()
        await guest.client.act([Click(x=5, y=5), Type(text="dirt")], QUICK)
        (used,) = docker.containers()
        fresh = await provider.reset(guest)
        (new,) = docker.containers()
        assert new["Id"] != used["Id"]
        assert (await fresh.client.execute(["ls"])).output.split() == ["installed.txt"]
        with pytest.raises(GuestError):
            await guest.client.screenshot()
        other = await provider.start()
        assert len(docker.containers()) == 2
        await provider.stop(other)
        await provider.stop(other)
        await provider.close()
        assert docker.containers() == []

        host = new["HostConfig"]
        assert host["CapAdd"] == ["NET_ADMIN"]
        assert host["Binds"] == [f"{docker.disk}:/System.qcow2:ro"]
        assert {"RAM_SIZE=2G", "CPU_CORES=2"} <= set(new["Config"]["Env"])
        assert new["Config"]["Image"] == IMAGE

    asyncio.run(story())


def test_guests_are_published_on_the_loopback_interface_only(docker) -> None:
    async def story() -> None:
        provider = provider_of(docker)
        guest = await provider.expose(await provider.start())
        (container,) = docker.containers()
        published = container["NetworkSettings"]["Ports"]
        assert sorted(published) == ["5000/tcp", "8006/tcp", "8080/tcp", "9222/tcp"]
        assert {binding["HostIp"] for bindings in published.values() for binding in bindings} == {"127.0.0.1"}
        assert guest.addresses.chromium == f"127.0.0.1:{published['9222/tcp'][0]['HostPort']}"
        async with httpx.AsyncClient() as http:
            assert (await http.get(f"http://{guest.addresses.server}/screenshot")).status_code == 200
        await provider.close()

    asyncio.run(story())


def test_ports_can_be_given_and_a_taken_one_is_an_error_that_leaves_no_container(docker) -> None:
    async def story() -> None:
        provider = provider_of(docker, port_base=25000)
        one, two = await asyncio.gather(provider.start(), provider.start())
        servers = {(await provider.expose(guest)).addresses.server for guest in (one, two)}
        assert servers == {"127.0.0.1:25000", "127.0.0.1:25004"}
        await provider.close()

    asyncio.run(story())
    docker.faults(busy_ports=[25001])
    error = start_error(provider_of(docker, port_base=25000))
    assert "port is already allocated" in error
    assert "fix: another --provider-option port_base=N" in error
    assert docker.containers() == []


def test_pausing_freezes_the_container_until_a_request_wakes_it(docker) -> None:
    def status() -> str:
        return docker.containers()[0]["State"]["Status"]

    async def story() -> None:
        provider = provider_of(docker)
        guest = await provider.start()
        await provider.pause(guest)
        assert status() == "paused"
        await guest.client.screenshot()
        assert status() == "running"
        await provider.pause(guest)
        await provider.resume(guest)
        assert status() == "running"
        await provider.pause(guest)
        await provider.stop(guest)
        assert docker.containers() == []
        await provider.close()

    asyncio.run(story())


@pytest.mark.parametrize(
    ("faults", "words"),
    [
        ({"dies": "qemu: could not open disk"}, ["has ended (exited)", "qemu: could not open disk"]),
        ({"boot_s": 60}, ["did not answer", "docker logs", "--start-timeout-s"]),
        (
            {"start_says": "mkdir /var/lib/docker: no space left on device"},
            ["no space left", "docker system prune"],
        ),
        (
            {"start_says": 'could not select device driver "/dev/kvm"'},
            ["/dev/kvm", "fix: load KVM"],
        ),
        ({"images": []}, ["No such image", f"fix: docker pull {IMAGE}"]),
    ],
)
def test_what_goes_wrong_at_a_start_is_said_with_the_fix(docker, faults, words) -> None:
    docker.faults(**faults)
    error = start_error(provider_of(docker, start_timeout_s=4.0))
    assert all(word in error for word in words), error
    assert docker.containers() == []


def test_a_start_that_is_cancelled_while_docker_creates_leaves_no_container(docker) -> None:
    docker.faults(create_s=2.0)

    async def story() -> None:
        provider = provider_of(docker)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1.0):
                await provider.start()
        await provider.close()

    asyncio.run(story())
    deadline = time.monotonic() + 20
    while not docker.has_created():  # Docker goes on by itself
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert docker.containers() == []


def test_containers_of_a_killed_env_server_are_removed_by_the_next(docker) -> None:
    from docker import from_env

    async def story() -> None:
        client = from_env()
        gone = subprocess.Popen([sys.executable, "-c", ""])
        gone.wait()
        for owner in (
            f"{platform.node()}/{gone.pid}",
            f"{platform.node()}/{os.getpid()}",
            f"elsewhere/{gone.pid}",
        ):
            client.containers.create(IMAGE, labels={"io.arpo.env-server": owner})
        client.close()
        provider = provider_of(docker)
        await provider.preflight()
        left = {container["Config"]["Labels"]["io.arpo.env-server"] for container in docker.containers()}
        assert left == {f"{platform.node()}/{os.getpid()}", f"elsewhere/{gone.pid}"}
        await provider.close()

    asyncio.run(story())


def test_bad_input_and_an_absent_daemon_are_refused_with_the_fix(docker, tmp_path, monkeypatch) -> None:
    assert "fix: unpack https://" in refusal(provider_of(docker, vm_path=None))
    assert "nothing.qcow2 is no file" in refusal(provider_of(docker, vm_path=str(tmp_path / "nothing.qcow2")))
    docker.faults(images=[])
    assert f"fix: docker pull {IMAGE}" in refusal(provider_of(docker))
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/absent.sock")
    absent = refusal(provider_of(docker))
    assert f"does not answer at unix://{tmp_path}/absent.sock" in absent
    assert "No such file" in absent
    assert "fix: start Docker" in absent
    for remote in ("ssh://me@box", "tcp://10.0.0.7:2375"):
        monkeypatch.setenv("DOCKER_HOST", remote)
        assert "run arpo-env-server on that machine" in refusal(provider_of(docker))


def test_a_missing_package_is_named_with_the_fix(docker, monkeypatch) -> None:
    from arpo.providers.osworld import upstream

    upstream._docker_module.cache_clear()
    monkeypatch.delitem(sys.modules, "desktop_env.providers.docker.provider", raising=False)
    monkeypatch.setitem(sys.modules, "docker", None)
    assert "docker not found; fix: pip install 'arpo[docker]'" in refusal(provider_of(docker))


def test_without_kvm_it_warns(docker, caplog, monkeypatch) -> None:
    from arpo.providers.osworld import docker as module

    monkeypatch.setattr(module, "_KVM", Path("/dev/no-kvm-here"))

    async def story() -> None:
        provider = provider_of(docker)
        await provider.preflight()
        await provider.close()

    asyncio.run(story())
    assert "no /dev/kvm, guests are emulated" in caplog.text


# --- through the command line and HTTP -------------------------------------------------------------------------------


def on_command_line(docker: DockerHost, *more: str) -> tuple[str, ...]:
    return ("--screen", "640x480", "--provider-option", f"vm_path={docker.disk}", *more)


def test_a_session_over_http_ends_in_a_score_and_no_container_is_left(docker, tmp_path) -> None:
    async def story(url: str, token: str) -> list[float]:
        scores = []
        async with EnvClient(url, token) as client:
            await client.wait_ready(30)
            for text in ("hello\n", "wrong"):
                async with await client.open_session(TASK) as session:
                    await session.step([Type(text=text), Finished()])
                    scores.append(await session.evaluate())
        return scores

    extra = on_command_line(docker, "--capacity", "2")
    with server_process(tmp_path, *extra, provider="docker") as server:
        assert asyncio.run(story(server.url, server.token)) == [1.0, 0.0]
        assert server.stop() == 0
        assert "Traceback" not in server.log
    assert docker.containers() == []


def test_a_container_that_cannot_start_is_named_with_the_fix_by_readyz(docker, tmp_path) -> None:
    docker.faults(start_says="mkdir /var/lib/docker: no space left on device")
    with server_process(tmp_path, *on_command_line(docker), provider="docker") as server:
        deadline = time.monotonic() + 60
        while "no space left" not in (said := httpx.get(f"{server.url}/readyz").text):
            assert time.monotonic() < deadline, said
            time.sleep(0.2)
        assert "docker system prune" in said
    assert docker.containers() == []


def test_an_absent_daemon_is_one_line_and_exit_code_2(docker, tmp_path) -> None:
    command = arguments(tmp_path, *on_command_line(docker), provider="docker")
    environment = {**os.environ, "DOCKER_HOST": f"unix://{tmp_path}/absent.sock"}
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)
    assert result.returncode == 2, result.stderr
    assert "fix: start Docker" in result.stderr.strip().splitlines()[-1]
