"""The simulated provider and its guests behind the interfaces, faults included; and the registry."""

import asyncio

import pytest

from arpo.guest_client import GuestError, GuestFileMissing, Settle
from arpo.protocol.actions import Press, Type
from arpo.protocol.problems import ConfigError
from arpo.providers.base import ProviderError
from arpo.providers.registry import make_provider, provider_names
from arpo.providers.simulated.provider import SimulatedProvider


def on_guest(scenario, **arguments):
    async def run():
        provider = SimulatedProvider(**arguments)
        await provider.preflight()
        try:
            return await scenario(provider, await provider.start())
        finally:
            await provider.close()

    return asyncio.run(run())


def run(command, *before):
    """What a command line does on a fresh guest."""

    async def scenario(provider, guest):
        for line in before:
            await guest.client.execute(line, shell=True)
        return await guest.client.execute(command, shell=True)

    result = on_guest(scenario)
    return result.returncode, result.output, result.error


@pytest.mark.parametrize(
    ("line", "outcome"),
    [
        ("echo hello  world", (0, "hello world\n", "")),
        ("echo 'a;b' \"c > d\" e\\ f", (0, "a;b c > d e f\n", "")),
        ("echo $HOME ~ '$HOME' \"$HOME/x\"", (0, "/home/user /home/user $HOME /home/user/x\n", "")),
        ("echo a > ~/f; echo b >> ~/f; cat ~/f", (0, "a\nb\n", "")),
        ("cat /none || echo no", (0, "no\n", "cat: /none: No such file or directory\n")),
        ("cat /none 2>/dev/null && echo yes", (1, "", "")),
        ("cat /none 2>&1 | wc -l", (0, "1\n", "")),
        ("false && echo a || echo b", (0, "b\n", "")),
        ("true || echo a && echo b", (0, "b\n", "")),
        ("printf 'b\\na\\n' | sort | grep a", (0, "a\n", "")),
        ("printf '%s-%s\\n' x y", (0, "x-y\n", "")),
        ("test -f ~/f", (1, "", "")),
        ("[ ! -d ~/none ] && [ a = a ] && echo ok", (0, "ok\n", "")),
        ("mkdir -p ~/a/b && touch ~/a/b/c && ls ~/a/b", (0, "c\n", "")),
        ("mkdir ~/a && mkdir ~/a", (1, "", "mkdir: /home/user/a: File exists\n")),
        ("mkdir ~/a; mv ~/a ~/a/b", (1, "", "mv: /home/user/a: Operation not permitted\n")),
        ("mkdir -p ~/a/b; touch ~/a/b/c; mv ~/a ~/z; cat ~/z/b/c; ls ~", (0, "z\n", "")),
        ("rm /home", (1, "", "rm: /home: Operation not permitted\n")),
        ("rm ~/none", (1, "", "rm: /home/user/none: No such file or directory\n")),
        ("rm -f ~/none; echo $HOME | grep -c user", (0, "1\n", "")),
        ("cp one", (2, "", "cp: wrong number of arguments\n")),
        ("sh -c 'echo in; whoami'", (0, "in\nuser\n", "")),
        ("gimp", (127, "", "gimp: command not found\n")),
        ("echo 'open", (2, "", 'sh: syntax error: unfinished quotation in "\'open"\n')),
        ("echo >", (2, "", "sh: syntax error: a redirection without a file\n")),
        ("", (0, "", "")),
    ],
)
def test_command_lines_mean_what_they_mean_in_a_shell(line, outcome):
    assert run(line) == outcome


def test_a_program_without_a_shell_gets_its_arguments_as_they_are():
    async def scenario(provider, guest):
        listed = await guest.client.execute(["echo", "a > b; c"])
        split = await guest.client.execute("echo 'a b' c")
        return listed.output, split.output

    assert on_guest(scenario) == ("a > b; c\n", "a b c\n")


def test_files_are_written_read_and_listed():
    async def scenario(provider, guest):
        client = guest.client
        await client.write_file("/home/user/new/a.bin", b"\x00\xff")
        assert await client.read_file("~/new/a.bin") == b"\x00\xff"
        with pytest.raises(GuestFileMissing):
            await client.read_file("/home/user/new")
        with pytest.raises(GuestFileMissing):
            await client.list_directory("/none")
        with pytest.raises(GuestError, match="Is a directory"):
            await client.write_file("/home", b"")
        return await client.list_directory("/home")

    user = {
        "type": "directory",
        "name": "user",
        "children": [{"type": "directory", "name": "new", "children": [{"type": "file", "name": "a.bin"}]}],
    }
    assert on_guest(scenario) == {"type": "directory", "name": "home", "children": [user]}


def test_windows_answer_to_their_names():
    async def scenario(provider, guest):
        client = guest.client
        await client.launch(["notes", "/home/user/a.txt"])
        await client.launch(["calculator"])
        return [
            await client.activate_window("NOTES"),
            await client.activate_window("Notes", strict=True),
            await client.activate_window("notes", strict=True, by_class=True),
            await client.close_window("Calculator", strict=True),
            await client.close_window("Calculator"),
        ]

    assert on_guest(scenario) == [True, False, True, True, False]


def test_a_program_that_does_not_exist_cannot_be_launched():
    async def scenario(provider, guest):
        with pytest.raises(GuestError, match="soffice: command not found"):
            await guest.client.launch(["soffice", "--calc"])

    on_guest(scenario)


def test_a_reset_guest_is_like_a_new_one_and_the_old_one_is_gone():
    async def scenario(provider, guest):
        clean = await guest.client.screenshot()
        await guest.client.execute("echo x > ~/a; notes ~/a", shell=True)
        assert await guest.client.screenshot() != clean
        fresh = await provider.reset(guest)
        assert fresh.id != guest.id
        assert await fresh.client.screenshot() == clean
        with pytest.raises(GuestFileMissing):
            await fresh.client.read_file("~/a")
        with pytest.raises(GuestError, match="gone"):
            await guest.client.screenshot()
        await provider.stop(fresh)
        await provider.stop(fresh)  # stopping what is gone is no error
        with pytest.raises(GuestError, match="gone"):
            await fresh.client.execute(["true"])

    on_guest(scenario)


def test_guests_share_nothing():
    async def scenario(provider, guest):
        other = await provider.start()
        await guest.client.write_file("~/a", b"")
        assert other.id != guest.id
        with pytest.raises(GuestFileMissing):
            await other.client.read_file("~/a")

    on_guest(scenario)


def test_faults_are_injected_as_asked():
    async def losing(provider, guest):
        await guest.client.act([Type(text="a")], Settle())
        await guest.client.act([Type(text="a")], Settle())
        with pytest.raises(GuestError):
            await guest.client.act([Type(text="a")], Settle())
        with pytest.raises(GuestError):
            await guest.client.screenshot()

    on_guest(losing, lose_guest_after=2)

    async def failing():
        provider = SimulatedProvider(fail_resets=2)
        for _ in range(2):
            with pytest.raises(ProviderError, match="injected"):
                await provider.start()
        await provider.start()

    asyncio.run(failing())

    async def unreadable(provider, guest):
        await guest.client.write_file("~/a", b"x")
        for call in (guest.client.read_file("~/a"), guest.client.list_directory("~")):
            with pytest.raises(GuestError, match="injected"):
                await call
        assert await guest.client.screenshot()

    on_guest(unreadable, fail_reads=True)


def test_a_frozen_guest_answers_nothing_until_it_is_stopped():
    async def scenario(provider, guest):
        await guest.client.act([Type(text="a")], Settle())
        calls = [asyncio.create_task(guest.client.act([Type(text="b")], Settle()))]
        await asyncio.sleep(0)
        calls += [
            asyncio.create_task(guest.client.screenshot()),
            asyncio.create_task(guest.client.read_file("~/a")),
        ]
        assert not (await asyncio.wait(calls, timeout=0.05))[0]
        client = provider.guests[guest.id]
        await provider.stop(guest)
        for call in calls:
            with pytest.raises(GuestError, match="gone"):
                await call
        assert [action.text for action in client.applied] == ["a"]

    on_guest(scenario, freeze_after=1)


def test_what_was_done_to_every_guest_can_be_counted_even_after_it_was_stopped():
    async def scenario(provider, guest):
        await guest.client.act([Type(text="a"), Press(key="enter")], Settle())
        fresh = await provider.reset(guest)
        await fresh.client.act([Type(text="b")], Settle())
        assert [client.applied for client in provider.guests.values()] == [
            [Type(text="a"), Press(key="enter")],
            [Type(text="b")],
        ]

    on_guest(scenario, keep_stopped=True)

    async def forgetting(provider, guest):
        fresh = await provider.reset(guest)
        assert list(provider.guests) == [fresh.id]

    on_guest(forgetting)


def test_whatever_changes_the_screen_is_in_the_next_picture():
    async def scenario(provider, guest):
        client = guest.client
        seen = [await client.screenshot()]
        for change in (
            lambda: client.execute("notes ~/a", shell=True),
            lambda: client.act([Type(text="a")], Settle()),
            lambda: client.open_file("~"),
            lambda: client.activate_window("notes"),
            lambda: client.close_window("notes"),
            lambda: client.launch(["calculator"]),
        ):
            await change()
            seen.append(await client.screenshot())
            assert seen[-1] != seen[-2]
            assert await client.screenshot() is seen[-1]

    on_guest(scenario)


def test_a_screen_that_is_too_small_is_refused():
    with pytest.raises(ConfigError, match="at least 640x480, got 640x400"):
        make_provider("simulated", screen=(640, 400))


def test_providers_are_made_by_name():
    assert {"simulated", "xvfb"} <= set(provider_names())
    assert make_provider("simulated", screen=(800, 600), step_latency_s=0.1).name == "simulated"
    with pytest.raises(ConfigError, match=r"unknown provider 'kvm'; known: .*simulated"):
        make_provider("kvm", screen=(640, 480))
    with pytest.raises(
        ConfigError, match=r"provider 'simulated' has no option 'sandbox'; known: .*fail_resets"
    ):
        make_provider("simulated", screen=(640, 480), sandbox="none")
