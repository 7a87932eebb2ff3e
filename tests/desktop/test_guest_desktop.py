"""The desktop layer over real simulated guests: blame, clean episodes, time-outs."""

import asyncio
from ipaddress import ip_network
from pathlib import Path

import pytest

from arpo.desktop.addresses import AddressPolicy
from arpo.desktop.guest_desktop import DesktopTimeouts, GuestDesktop
from arpo.desktop.sources import Sources
from arpo.protocol.actions import Click, Drag, Fail, Finished, Press, Type, Wait
from arpo.protocol.problems import Fault, ProblemCode, ProblemError
from arpo.providers.simulated.provider import SimulatedProvider
from arpo.tasks.validate import parse_task
from arpo.telemetry import phases

CATASTROPHE = {"expect": ["^(a+)+$"]}  # exponential time on a line of a's that ends with a b


def task(config=(), **evaluator):
    evaluator = evaluator or {
        "func": "exact_match",
        "result": {"type": "vm_command_line", "command": "cat ~/a.txt", "shell": True},
        "expected": {"type": "rule", "rules": {"expected": "hello"}},
    }
    return parse_task(
        {"id": "t", "instruction": "Do.", "config": list(config), "evaluator": evaluator}, "task"
    )


def launch(*command):
    return {"type": "launch", "parameters": {"command": list(command)}}


def drive(scenario, *, provider=None, **arguments):
    async def run():
        desktop = GuestDesktop(provider or SimulatedProvider(), **arguments)
        try:
            return await scenario(desktop)
        finally:
            await desktop.close()

    return asyncio.run(run())


def code_of(awaitable_maker, **arguments):
    async def scenario(desktop):
        with pytest.raises(ProblemError) as caught:
            await awaitable_maker(desktop)
        return caught.value

    return drive(scenario, **arguments)


def test_an_episode_runs_from_reset_to_score():
    async def scenario(desktop):
        first = await desktop.reset(task([launch("notes", "/home/user/a.txt")]))
        second = await desktop.execute([Type(text="hello")])
        assert first.startswith(b"\x89PNG")
        assert first != second
        before = await desktop.evaluate()
        await desktop.execute([Press(key="tab")])
        await desktop.execute([Click(x=575, y=62), Finished()])
        return before, await desktop.evaluate()

    assert drive(scenario) == (0.0, 1.0)


def test_nothing_of_an_episode_reaches_the_next():
    async def scenario(desktop):
        notes = task([launch("notes", "/home/user/a.txt")])
        first = await desktop.reset(notes)
        await desktop.execute([Type(text="hello"), Click(x=575, y=62)])
        assert await desktop.evaluate() == 1.0
        assert await desktop.reset(notes) == first
        return await desktop.evaluate()

    assert drive(scenario) == 0.0


@pytest.mark.parametrize(
    ("func", "actions", "score"),
    [
        ("infeasible", [Fail()], 1.0),
        ("infeasible", [Finished()], 0.0),
        ("infeasible", [], 0.0),
        ("infeasible", [Finished(), Fail()], 0.0),  # the episode ended before the fail
        ("exact_match", [Finished()], 1.0),
        ("exact_match", [Fail()], 0.0),
    ],
)
def test_giving_up_is_right_only_for_what_cannot_be_done(func, actions, score):
    evaluator = {"func": func}
    if func == "exact_match":
        evaluator |= {
            "result": {"type": "rule", "rules": "same"},
            "expected": {"type": "rule", "rules": {"expected": "same"}},
        }

    async def scenario(desktop):
        await desktop.reset(task(**evaluator))
        await desktop.execute(actions)
        return await desktop.evaluate()

    assert drive(scenario) == score


@pytest.mark.parametrize("action", [Click(x=640, y=10), Click(x=10, y=480), Drag(x=1, y=1, to_x=9, to_y=999)])
def test_an_action_off_the_screen_is_refused_and_nothing_is_performed(action):
    async def scenario(desktop):
        before = await desktop.reset(task([launch("notes")]))
        with pytest.raises(ProblemError) as caught:
            await desktop.execute([Type(text="x"), action])
        assert await desktop.execute([]) == before
        return caught.value

    problem = drive(scenario)
    assert problem.code is ProblemCode.INVALID_ACTION
    assert "640x480" in str(problem)


@pytest.mark.parametrize(
    ("step", "code", "message"),
    [
        (launch("gimp"), ProblemCode.SETUP_FAILED, "setup step 1 (launch): gimp: command not found"),
        (
            {"type": "open", "parameters": {"pth": "/a"}},
            ProblemCode.INVALID_TASK,
            "setup step 1 (open): missing a required argument: 'path'",
        ),
        (
            {"type": "download", "parameters": {"files": [{"url": "suite:simulated/files/milk.txt"}]}},
            ProblemCode.INVALID_TASK,
            "setup step 1 (download): 'path' is missing",
        ),
        (
            {"type": "download", "parameters": {"files": [{"url": "file:///etc/passwd", "path": "/a"}]}},
            ProblemCode.INVALID_TASK,
            "only suite:, data:, http: and https: URLs are read",
        ),
        (
            {"type": "upload_file", "parameters": {"files": [{"local_path": "/etc/passwd", "path": "/a"}]}},
            ProblemCode.INVALID_TASK,
            "only suite:, data:, http: and https: URLs are read",
        ),
        ({"type": "login"}, ProblemCode.INVALID_TASK, "setup step 1 (login) is not supported"),
        (
            {"type": "download", "parameters": {"files": [{"url": "http://127.0.0.1:9/a", "path": "/a"}]}},
            ProblemCode.SETUP_FAILED,
            "setup step 1 (download): http://127.0.0.1:9/a: ConnectError",
        ),
    ],
)
def test_a_setup_that_fails_names_its_step_and_who_is_to_blame(step, code, message):
    sources = Sources(allow=AddressPolicy(networks=(ip_network("127.0.0.0/8"),)))
    problem = code_of(lambda desktop: desktop.reset(task([step])), sources=sources)
    assert problem.code is code
    assert message in problem.problem.detail
    assert problem.fault is (Fault.CLIENT if code is ProblemCode.INVALID_TASK else Fault.ENVIRONMENT)


def test_a_guest_that_is_lost_is_never_a_score_and_the_next_reset_gets_a_fresh_one():
    async def scenario(desktop):
        await desktop.reset(task([launch("notes")]))
        codes = []
        for call in (lambda: desktop.execute([Type(text="a")]),) * 2 + (desktop.evaluate,):
            try:
                await call()
            except ProblemError as error:
                codes.append(error.code)
        await desktop.reset(task([launch("notes")]))
        await desktop.execute([Type(text="a")])
        return codes

    lost = [ProblemCode.DESKTOP_LOST] * 2
    assert drive(scenario, provider=SimulatedProvider(lose_guest_after=1)) == lost


def test_a_guest_lost_before_its_setup_is_a_lost_desktop():
    async def scenario(desktop):
        await desktop.start()
        desktop._running().client.lose()
        with pytest.raises(ProblemError) as caught:
            await desktop.reset(task([launch("notes")]))
        return caught.value.code

    assert drive(scenario) is ProblemCode.DESKTOP_LOST


def test_a_failing_provider_is_named_by_phase_and_the_next_attempt_works():
    async def scenario(desktop):
        with pytest.raises(ProblemError) as at_start:
            await desktop.reset(task())
        await desktop.reset(task())
        provider._failures_left = 1
        with pytest.raises(ProblemError) as at_reset:
            await desktop.reset(task())
        await desktop.reset(task())
        return at_start.value.code, at_reset.value.code

    provider = SimulatedProvider(fail_resets=1)
    assert drive(scenario, provider=provider) == (ProblemCode.START_FAILED, ProblemCode.RESET_FAILED)


def test_what_takes_too_long_has_its_own_code():
    slow_start = code_of(
        lambda desktop: desktop.start(),
        provider=SimulatedProvider(reset_latency_s=5),
        timeouts=DesktopTimeouts(start_s=0.05),
    )
    assert slow_start.code is ProblemCode.START_FAILED

    async def slow_step(desktop):
        await desktop.reset(task())
        await desktop.execute([Type(text="a")])

    slow = code_of(
        slow_step, provider=SimulatedProvider(step_latency_s=5), timeouts=DesktopTimeouts(step_s=0.05)
    )
    assert slow.code is ProblemCode.STEP_TIMEOUT
    sleep = {"type": "sleep", "parameters": {"seconds": 5}}
    slow_setup = code_of(lambda desktop: desktop.reset(task([sleep])), timeouts=DesktopTimeouts(setup_s=0.05))
    assert slow_setup.code is ProblemCode.SETUP_FAILED

    async def slow_clean(desktop):
        await desktop.reset(task())
        provider._reset_latency_s = 5
        with pytest.raises(ProblemError) as caught:
            await desktop.clean()
        provider._reset_latency_s = 0
        await desktop.reset(task())
        return caught.value.code

    provider = SimulatedProvider()
    timeouts = DesktopTimeouts(reset_s=0.05)
    assert drive(slow_clean, provider=provider, timeouts=timeouts) is ProblemCode.RESET_FAILED


def test_waiting_that_an_action_asks_for_is_no_delay_of_the_guest():
    async def scenario(desktop):
        await desktop.reset(task())
        return await desktop.execute([Wait(seconds=60)])

    provider = SimulatedProvider(step_latency_s=0.2)
    assert drive(scenario, provider=provider, timeouts=DesktopTimeouts(step_s=0.1)).startswith(b"\x89PNG")


def test_an_evaluator_that_raises_is_an_environment_fault_with_its_name():
    async def scenario(desktop):
        await desktop.reset(
            task(
                func="check_direct_json_object",
                result={"type": "vm_command_line", "command": ["echo", "no json"]},
                expected={"type": "rule", "rules": {"expected": {"a": 1}}},
            )
        )
        with pytest.raises(ProblemError) as caught:
            await desktop.evaluate()
        return caught.value

    problem = drive(scenario)
    assert (problem.code, problem.fault) == (ProblemCode.EVALUATOR_FAILED, Fault.ENVIRONMENT)
    assert "check_direct_json_object" in str(problem)


def test_an_evaluator_that_hangs_times_out_and_the_next_one_works():
    async def scenario(desktop):
        hanging = task(
            [
                {
                    "type": "execute",
                    "parameters": {"command": f"echo {'a' * 60}b > ~/a.txt", "shell": True},
                }
            ],
            func="check_list",
            result={"type": "vm_file", "path": "/home/user/a.txt", "dest": "a.txt"},
            expected={"type": "rule", "rules": CATASTROPHE},
        )
        await desktop.reset(hanging)
        with pytest.raises(ProblemError) as caught:
            await desktop.evaluate()
        await desktop.reset(task([launch("notes")], func="infeasible"))
        return caught.value.code, await desktop.evaluate()

    timeouts = DesktopTimeouts(evaluate_s=2.0)
    assert drive(scenario, timeouts=timeouts) == (ProblemCode.EVALUATOR_TIMEOUT, 0.0)


def test_an_episodes_files_on_this_host_are_gone_after_it():
    async def scenario(desktop):
        await desktop.reset(task([launch("notes")]))
        folder = desktop._episode.folder
        assert folder.is_dir()
        await desktop.clean()
        assert not folder.exists()
        await desktop.reset(task())
        return desktop._scratch.path.parent, desktop._episode.folder

    scratch, folder = drive(scenario)
    assert folder.is_relative_to(scratch)
    assert not scratch.exists()


def test_calls_out_of_order_are_refused():
    async def screen(desktop):
        return desktop.screen

    for call in (screen, lambda d: d.execute([]), lambda d: d.evaluate()):
        assert code_of(call).code is ProblemCode.NOT_READY


def test_the_tasks_files_come_from_the_suites_that_the_desktop_knows(tmp_path):
    (tmp_path / "a.txt").write_text("hello")
    download = {"type": "download", "parameters": {"files": [{"url": "suite:mine/a.txt", "path": "~/a.txt"}]}}

    async def scenario(desktop):
        await desktop.reset(task([download]))
        return await desktop.evaluate()

    assert drive(scenario, sources=Sources(suites={"mine": Path(tmp_path)})) == 1.0


def test_every_operation_says_where_its_time_goes():
    async def scenario(desktop):
        recorded = []
        task_ = task([launch("notes")], func="infeasible")
        for call in (
            lambda: desktop.reset(task_),
            lambda: desktop.execute([Type(text="a")]),
            desktop.evaluate,
            desktop.clean,
            lambda: desktop.reset(task_),
        ):
            with phases.record() as taken:
                await call()
            recorded.append(taken)
        return recorded

    recorded = drive(scenario)
    assert [set(taken) for taken in recorded] == [
        {"start", "setup", "settle", "screenshot"},
        {"act", "settle", "screenshot"},
        {"evaluate"},
        {"clean"},
        {"setup", "settle", "screenshot"},
    ]
    assert all(seconds >= 0 for taken in recorded for seconds in taken.values())


def test_a_frozen_guest_is_a_lost_desktop_within_the_time_out_and_can_be_closed():
    async def scenario(desktop):
        await desktop.reset(task([launch("notes")]))
        await desktop.execute([Type(text="a")])
        with pytest.raises(ProblemError) as caught:
            await desktop.execute([Type(text="b")])
        return caught.value.code

    provider = SimulatedProvider(freeze_after=1)
    timeouts = DesktopTimeouts(step_s=0.05)
    assert drive(scenario, provider=provider, timeouts=timeouts) is ProblemCode.DESKTOP_LOST


def test_an_evaluator_that_cannot_read_the_guests_files_is_no_score():
    async def scenario(desktop):
        await desktop.reset(
            task(
                func="compare_text_file",
                result={"type": "vm_file", "path": "/home/user/a.txt", "dest": "a.txt"},
                expected={"type": "rule", "rules": {"expected": "a"}},
            )
        )
        with pytest.raises(ProblemError) as caught:
            await desktop.evaluate()
        return caught.value.code

    provider = SimulatedProvider(fail_reads=True)
    assert drive(scenario, provider=provider) is ProblemCode.EVALUATOR_FAILED
