"""VMware machines behind our interface, against a stand-in `vmrun` that keeps state, delays and fails.

Nobody has run this on a real hypervisor: what is proven is what we do with vmrun's answers, not vmrun.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from provider_errors import refusal, start_error
from server_process import arguments, server_process
from vmware_kit import Vmware

from arpo.client import EnvClient
from arpo.desktop.guest_desktop import GuestDesktop
from arpo.guest_client import GuestError, Settle
from arpo.protocol.actions import Click, Finished, Hotkey, Press, Type
from arpo.protocol.problems import ConfigError, Fault, ProblemCode, ProblemError
from arpo.providers.base import Addresses, Provider, ProviderError
from arpo.providers.registry import make_provider
from arpo.tasks.model import Task

SCREEN = (640, 480)
QUICK = Settle(quiet_s=0.1, ceiling_s=2.0)
TASK = {
    "id": "greet",
    "instruction": "Type the greeting.",
    "config": [{"type": "execute", "parameters": {"command": ["mkdir", "prepared"]}}],
    "evaluator": {
        "func": "exact_match",
        "result": {"type": "vm_command_line", "command": "cat typed.txt; ls", "shell": True},
        "expected": {
            "type": "rule",
            "rules": {"expected": 'it\'s "me"\nevents.jsonl\ninstalled.txt\nprepared\ntyped.txt\n'},
        },
    },
}


@pytest.fixture
def vmware(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Vmware]:
    host = Vmware(tmp_path)
    for name, value in host.environment().items():
        monkeypatch.setenv(name, value)
    yield host
    host.pull_all_plugs()


def provider_of(*machines: Path, **options: object) -> Provider:
    options = {"start_timeout_s": 20.0, "desktops": len(machines), **options}
    return make_provider("vmware", screen=SCREEN, vm_path=[str(vm) for vm in machines], **options)


def test_a_desktop_is_the_machine_at_its_snapshot_each_time(vmware) -> None:
    vm = vmware.machine()

    async def story() -> None:
        provider = provider_of(vm)
        await provider.preflight()
        guest = await provider.start()
        await guest.client.act([Click(x=5, y=5), Type(text="dirt"), Press(key="enter")], QUICK)
        assert await guest.client.read_file(str(vm.parent / "disk/typed.txt")) == b"dirt\n"
        fresh = await provider.reset(guest)
        assert (await fresh.client.execute(["ls"])).output.split() == ["installed.txt"]
        assert vmware.commands().count("revertToSnapshot") == 2
        assert vmware.running()[str(vm)]["gui"] is False
        with pytest.raises(GuestError):
            await guest.client.screenshot()
        await provider.stop(fresh)
        await provider.stop(fresh)
        assert vmware.running() == {}
        await provider.close()

    asyncio.run(story())


def test_a_machine_left_running_or_paused_by_a_killed_server_is_taken_over(vmware) -> None:
    vm = vmware.machine()

    async def story(left: str) -> None:
        subprocess.run(["vmrun", "-T", "ws", "start", vm], check=True)
        if left == "paused":
            subprocess.run(["vmrun", "-T", "ws", "pause", vm], check=True)
        provider = provider_of(vm)
        guest = await provider.start()
        await guest.client.screenshot()
        await provider.close()
        assert vmware.running() == {}

    for left in ("running", "paused"):
        asyncio.run(story(left))


def test_several_machines_are_several_desktops_and_one_more_is_refused(vmware) -> None:
    machines = [vmware.machine("one"), vmware.machine("two")]

    async def story() -> None:
        provider = provider_of(*machines)
        await provider.preflight()
        one, two = await asyncio.gather(provider.start(), provider.start())
        await one.client.act([Type(text="one")], QUICK)
        assert (await two.client.execute(["ls"])).output.split() == ["installed.txt"]
        with pytest.raises(ProviderError, match=r"all 2 machines are in use; fix: .*vm_path"):
            await provider.start()
        await provider.close()

    asyncio.run(story())
    assert "--capacity 2" in refusal(provider_of(*machines, desktops=3))


def test_a_guest_that_boots_slowly_is_waited_for(vmware) -> None:
    vm = vmware.machine()
    vmware.faults(guest={"tools_after_s": 1.0, "boot_s": 2.0})

    async def story() -> None:
        provider = provider_of(vm)
        assert (await provider.start()).screen == SCREEN
        await provider.close()

    asyncio.run(story())
    assert vmware.commands().count("getGuestIPAddress") > 1


def test_pausing_freezes_the_guest_and_resuming_goes_on(vmware) -> None:
    vm = vmware.machine()

    async def story() -> None:
        provider = provider_of(vm)
        guest = await provider.start()
        await provider.pause(guest)
        await provider.pause(guest)
        assert vmware.running()[str(vm)]["paused"]
        await guest.client.screenshot()  # a request wakes it
        assert not vmware.running()[str(vm)]["paused"]
        await provider.pause(guest)
        await provider.resume(guest)
        assert not vmware.running()[str(vm)]["paused"]
        await provider.pause(guest)
        await provider.stop(guest)
        assert vmware.running() == {}
        await provider.close()

    asyncio.run(story())


def test_an_idle_guest_is_paused_between_actions_until_others_need_its_address(vmware) -> None:
    vm = vmware.machine()

    async def paused() -> bool:
        return vmware.running()[str(vm)]["paused"]

    async def story() -> None:
        provider = provider_of(vm, pause_after_s=0.2)
        guest = await provider.start()
        assert guest.addresses == Addresses()
        for _ in range(2):
            async with asyncio.timeout(10):
                while not await paused():
                    await asyncio.sleep(0.05)
            await guest.client.act([Type(text="x")], QUICK)
        exposed = await provider.expose(guest)
        assert exposed.addresses.server is not None
        assert exposed.addresses.server.endswith(":5000")
        assert not await paused()
        await exposed.client.screenshot()
        await asyncio.sleep(1.0)
        assert not await paused()
        await provider.close()
        assert vmware.running() == {}

    asyncio.run(story())


def test_a_task_ends_in_a_score(vmware) -> None:
    vm = vmware.machine()

    async def story() -> float:
        provider = provider_of(vm)
        desktop = GuestDesktop(provider)
        try:
            await desktop.reset(Task.model_validate(TASK))
            await desktop.execute([Type(text='it\'s "me"\n'), Finished()])
            return await desktop.evaluate()
        finally:
            await desktop.close()
            await provider.close()

    assert asyncio.run(story()) == 1.0


@pytest.mark.parametrize(
    ("faults", "words"),
    [
        (
            {"guest": {"tools_after_s": 999}},
            ["VMware Tools are not running", "fix: install", "open-vm-tools", "not done after"],
        ),
        (
            {"getGuestIPAddress": {"say": "Unable to get the IP address", "times": 99}},
            ["IP address", "fix: give", "NAT"],
        ),
        ({"getGuestIPAddress": {"hang_s": 60}}, ["not done after", "did not end", "fix: give", "DHCP"]),
        (
            {"start": {"say": "Insufficient permissions in the host operating system"}},
            ["permissions", "fix: give this user"],
        ),
        (
            {"start": {"say": "Not enough physical memory is available to power on this virtual machine"}},
            ["memory", "fix: free"],
        ),
        (
            {"revertToSnapshot": {"say": "The snapshot does not exist"}},
            ["snapshot does not exist", "fix: take it: vmrun -T ws snapshot"],
        ),
        ({"list": {"hang_s": 60}}, ["not done after", "fix: see in VMware's window"]),
        ({"guest": {"deaf": True}}, [":5000 did not answer", "fix: start OSWorld's server (port 5000)"]),
    ],
)
def test_what_goes_wrong_at_a_start_is_said_with_the_fix_in_time(vmware, faults, words) -> None:
    vmware.faults(**faults)
    begun = time.monotonic()
    error = start_error(provider_of(vmware.machine(), start_timeout_s=3.0))
    assert all(word in error for word in words), error
    assert time.monotonic() - begun < 30, "a hanging vmrun was waited for"


def test_a_locked_machine_is_said_with_the_lock(vmware) -> None:
    vm = vmware.machine()
    vm.with_name(vm.name + ".lck").mkdir()  # open in VMware's window
    error = start_error(provider_of(vm))
    assert "already in use" in error
    assert f"remove {vm}.lck" in error
    assert "fix: quit the VMware window" in error


def test_a_guest_that_dies_while_it_boots_is_not_waited_for(vmware) -> None:
    vm = vmware.machine()
    vmware.faults(guest={"deaf": True})

    async def story() -> None:
        provider = provider_of(vm, start_timeout_s=60.0)
        starting = asyncio.create_task(provider.start())
        while not vmware.running() or "getGuestIPAddress" not in vmware.commands():
            await asyncio.sleep(0.05)
        subprocess.run(["vmrun", "-T", "ws", "stop", vm], check=True)
        with pytest.raises(ProviderError, match=r"powered off by itself; fix: .*vmware\.log"):
            await starting
        await provider.close()

    asyncio.run(story())


def test_a_start_that_is_cancelled_leaves_nothing_running(vmware) -> None:
    vm = vmware.machine()
    vmware.faults(getGuestIPAddress={"hang_s": 60})

    async def story() -> None:
        provider = provider_of(vm, start_timeout_s=60.0)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(2.0):
                await provider.start()
        guest = await provider.start()  # the machine can be had again at once
        assert vmware.commands().count("start") == 2
        starting = asyncio.create_task(provider.reset(guest))
        await asyncio.sleep(0.3)
        starting.cancel()
        await provider.close()
        assert vmware.running() == {}

    asyncio.run(story())


def test_the_wrong_screen_is_an_error_that_names_the_right_one(vmware, monkeypatch) -> None:
    monkeypatch.setenv("VMRUN_SCREEN", "800x600")
    error = start_error(provider_of(vmware.machine()))
    assert "800x600, not 640x480; fix: --screen 800x600" in error
    assert vmware.running() == {}


def test_bad_input_is_refused_with_the_fix_before_anything_starts(vmware, tmp_path, monkeypatch) -> None:
    vm = vmware.machine()
    assert "fix: --provider-option vm_path=" in refusal(provider_of())
    assert "is no .vmx file" in refusal(provider_of(tmp_path / "none.vmx"))
    assert "vmrun=/no/vmrun is no program" in refusal(provider_of(vm, vmrun="/no/vmrun"))
    without = refusal(provider_of(vm, snapshot="golden"))
    assert "no snapshot 'golden' (it has init_state); fix: --provider-option snapshot=NAME" in without
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    missing = refusal(provider_of(vm))
    assert "vmrun not found; fix: install VMware Workstation" in missing
    monkeypatch.setattr(sys, "platform", "darwin")
    assert "VMware Fusion" in refusal(provider_of(vm))
    assert vmware.running() == {}


def test_a_machine_belongs_to_one_env_server_of_the_host(vmware) -> None:
    vm = vmware.machine()

    async def story() -> None:
        first = provider_of(vm)
        await first.preflight()
        second = provider_of(vm)
        with pytest.raises(ConfigError, match=r"another env-server on this host uses .*; fix: stop it"):
            await second.preflight()
        await first.close()
        await second.preflight()
        await second.close()

    asyncio.run(story())


def test_no_file_is_left_in_the_working_directory(vmware, tmp_path, monkeypatch) -> None:
    vm = vmware.machine()
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)

    async def story() -> None:
        provider = provider_of(vm)
        await provider.preflight()
        await provider.stop(await provider.start())
        await provider.close()

    asyncio.run(story())
    assert list(here.iterdir()) == []


# --- through the command line and HTTP -------------------------------------------------------------------------------


def on_command_line(vm: Path, *more: str) -> tuple[str, ...]:
    return ("--screen", "640x480", "--provider-option", f"vm_path={vm}", *more)


def test_a_session_over_http_ends_in_a_score_and_the_machine_is_off_after_it(vmware, tmp_path) -> None:
    vm = vmware.machine()

    async def story(url: str, token: str) -> list[float]:
        scores = []
        async with EnvClient(url, token) as client:
            await client.wait_ready(30)
            for text in ('it\'s "me"\n', "wrong"):
                async with await client.open_session(TASK) as session:
                    reply = await session.step([Type(text=text), Finished()])
                    assert reply.done
                    scores.append(await session.evaluate())
        return scores

    with server_process(tmp_path, *on_command_line(vm), provider="vmware") as server:
        assert asyncio.run(story(server.url, server.token)) == [1.0, 0.0]
        assert server.stop() == 0
        assert "Traceback" not in server.log
    assert vmware.running() == {}


def test_a_guest_that_dies_in_a_session_is_an_environment_fault_and_is_replaced(vmware, tmp_path) -> None:
    vm = vmware.machine()

    async def story(url: str, token: str) -> None:
        async with EnvClient(url, token) as client:
            await client.wait_ready(30)
            session = await client.open_session(TASK)
            subprocess.run(["vmrun", "-T", "ws", "stop", vm, "hard"], check=True)
            with pytest.raises(ProblemError) as caught:
                await session.step([Hotkey(keys=("ctrl", "s"))])
            assert (caught.value.code, caught.value.fault) == (ProblemCode.DESKTOP_LOST, Fault.ENVIRONMENT)
            await session.close()
            await client.wait_ready(30)
            async with await client.open_session(TASK) as fresh:
                await fresh.step([Type(text='it\'s "me"\n'), Finished()])
                assert await fresh.evaluate() == 1.0

    with server_process(tmp_path, *on_command_line(vm), provider="vmware") as server:
        asyncio.run(story(server.url, server.token))


def test_a_machine_that_cannot_start_is_named_with_the_fix_by_readyz(vmware, tmp_path) -> None:
    vm = vmware.machine()
    vmware.faults(guest={"tools_after_s": 999})
    extra = on_command_line(vm, "--start-timeout-s", "5")
    with server_process(tmp_path, *extra, provider="vmware") as server:
        deadline = time.monotonic() + 60
        while "Tools" not in (said := httpx.get(f"{server.url}/readyz").text):
            assert time.monotonic() < deadline, said
            time.sleep(0.2)
        assert "open-vm-tools" in said


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--capacity", "2"], ["--capacity 1"]),
        (["--provider-option", "snapshot=golden"], ["golden", "snapshot=NAME"]),
        (["--provider-option", "pause_after_s=soon"], ["pause_after_s='soon'", "number"]),
        (["--provider-option", "speed=9"], ["no option 'speed'", "snapshot"]),
        (["--provider-option", "nonsense"], ["KEY=VALUE"]),
    ],
)
def test_a_refusal_is_one_line_and_exit_code_2(vmware, tmp_path, more, words) -> None:
    command = arguments(tmp_path, *on_command_line(vmware.machine(), *more), provider="vmware")
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=os.environ)
    assert result.returncode == 2, result.stderr
    (line,) = result.stderr.strip().splitlines()
    assert all(word in line for word in words), line
