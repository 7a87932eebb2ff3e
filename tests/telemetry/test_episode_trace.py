"""One trace per episode, over real sockets: an episode's runner, its client, an env-server, a collector."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from fault_proxy import NetFault, fault_proxy
from rollout_kit import CLICK, FINISH, NONSENSE, PROFILE, Letters, Says, rules, task
from scripted_desktop import TOKEN, Script, env_server, lost

from arpo.client import Backoff, ClientTimeouts, EnvClient
from arpo.desktop.guest_desktop import GuestDesktop
from arpo.protocol.problems import ProblemCode
from arpo.providers.registry import make_provider
from arpo.rollout.episode import EpisodeRules, EpisodeRunner
from arpo.rollout.groups import Episode
from arpo.telemetry.phases import phase
from arpo.trajectory import Trajectory
from arpo.trajectory.store import ScreenshotStore

INTERNAL, SERVER, CLIENT = 1, 2, 3  # span kinds on the wire
SECRET = "typed-by-the-policy-and-nobody-elses-business"
TYPES = f"Thought: so.\nAction: type(content='{SECRET}')"


async def acts(desktop) -> None:
    with phase("act"):
        await asyncio.sleep(0.002)
    with phase("settle"):
        await asyncio.sleep(0.002)


def played(
    folder, engine, script=None, *, timeouts=None, faults=(), rules_: EpisodeRules | None = None, **settings
) -> Trajectory:
    async def main() -> Trajectory:
        async with (
            env_server(folder, script or Script(execute=acts), **settings) as server,
            fault_proxy(server.url) as proxy,
            EnvClient(
                proxy.url, TOKEN, timeouts=timeouts or ClientTimeouts(), backoff=Backoff(first_s=0.01)
            ) as client,
        ):
            await client.wait_ready(5)
            proxy.choose = lambda request: next(waiting, None) if request.method == "POST" else None
            waiting = iter(faults)
            runner = EpisodeRunner(client, Letters(), PROFILE, ScreenshotStore(folder / "screenshots"))
            return await runner.run(Episode("g/0", "g", task(), seed=1), engine, rules_ or rules())

    return asyncio.run(main())


def encoded(*before: str):
    return [*((name, []) for name in before), ("desktop.encode", [])]


RESET = ("arpo.reset", [("arpo.lease", []), ("env.reset", encoded())])
STEP = ("arpo.step", [("env.step", encoded("desktop.act", "desktop.settle"))])
EVALUATE = ("arpo.evaluate", [("env.evaluate", [])])
GENERATE = ("arpo.generate", [])
TWO_TURNS = ("arpo.episode", [RESET, GENERATE, STEP, GENERATE, STEP, EVALUATE])


def test_an_episode_is_one_trace_from_the_trainer_through_to_the_desktops_phases(tmp_path, exported) -> None:
    trajectory = played(tmp_path, Says(TYPES, FINISH))
    exported.flush()
    (root,) = exported.named("arpo.episode")
    assert exported.tree(root) == TWO_TURNS
    assert {span.trace_id for span in exported.spans} == {root.trace_id} == {trajectory.trace_id}
    assert root.span_id == trajectory.span_id
    assert root.parent_id == ""
    assert {span.error for span in exported.spans} == {None}
    assert root.attributes == {
        "arpo.episode.id": "g/0", "arpo.group.id": "g", "arpo.task.id": "t", "arpo.task.domain": "test",
        "arpo.turns": 2, "arpo.score": 1.0, "arpo.format_errors": 0, "arpo.policy.version": 7,
    }  # fmt: skip
    assert [span.attributes["arpo.turn"] for span in exported.named("arpo.generate")] == [0, 1]
    assert [span.attributes["arpo.step.seq"] for span in exported.named("env.step")] == [1, 2]
    for span in exported.spans:
        parent = next((one for one in exported.spans if one.span_id == span.parent_id), None)
        assert span.start <= span.end
        if parent and span.name.startswith(("desktop.", "provider.")):
            assert parent.start - 1e-6 <= span.start, "a phase began before its operation"
            assert span.end <= parent.end + 1e-6
    kinds = {span.name: span.kind for span in exported.spans}
    assert (kinds["arpo.step"], kinds["env.step"], kinds["desktop.act"]) == (CLIENT, SERVER, INTERNAL)


def test_nothing_that_was_typed_and_no_credential_leaves_in_a_span(tmp_path, exported) -> None:
    played(tmp_path, Says(TYPES, FINISH))
    exported.flush()
    sent = b"".join(exported.bodies)
    assert b"arpo.episode" in sent
    for secret in (SECRET, TOKEN, "Bearer", "127.0.0.1"):
        assert secret.encode() not in sent


def test_polls_of_one_operation_are_one_span(tmp_path, exported) -> None:
    async def slowly(desktop) -> None:
        await asyncio.sleep(0.3)
        await acts(desktop)

    async def scored(desktop) -> float:
        await asyncio.sleep(0.2)
        return 1.0

    script = Script(execute=slowly, reset=lambda desktop: asyncio.sleep(0.2), evaluate=scored)
    played(tmp_path, Says(CLICK, FINISH), script, timeouts=ClientTimeouts(poll_s=0.04))
    exported.flush()
    (root,) = exported.named("arpo.episode")
    assert exported.tree(root) == TWO_TURNS
    assert exported.orphans() == []


@pytest.mark.parametrize(
    "fault", [NetFault.LOSE_REQUEST, NetFault.LOSE_REPLY, NetFault.LATE_REQUEST, NetFault.BAD_GATEWAY]
)
def test_requests_that_are_sent_again_belong_to_the_same_operation(tmp_path, exported, fault) -> None:
    # the creation, both steps and the evaluation each meet it once
    trajectory = played(tmp_path, Says(CLICK, FINISH), faults=[fault, None] * 4)
    exported.flush()
    assert trajectory.valid
    (root,) = exported.named("arpo.episode")
    assert exported.tree(root) == TWO_TURNS
    assert exported.orphans() == []


def test_the_wait_for_a_free_desktop_is_the_lease(tmp_path, exported) -> None:
    async def main() -> None:
        async with env_server(tmp_path, Script(execute=acts)) as server:
            await server.client.wait_ready(5)
            runner = EpisodeRunner(server.client, Letters(), PROFILE, ScreenshotStore(tmp_path / "s"))
            held = await server.client.open_session(task().wire())
            episode = asyncio.create_task(runner.run(Episode("g/0", "g", task(), 1), Says(FINISH), rules()))
            await asyncio.sleep(0.7)
            await held.close()
            waited = next(one for one in (await episode).operations if one.name == "reset").phases[0]
            assert waited[0] == "lease"
            assert waited[2] >= 0.6

    asyncio.run(main())
    exported.flush()
    episode = exported.named("arpo.episode")[0]
    (lease,) = [span for span in exported.named("arpo.lease") if span.trace_id == episode.trace_id]
    assert lease.end - lease.start >= 0.6
    # who holds a session outside of an episode has no trace; the server's operation is one of its own
    (own,) = [span for span in exported.spans if span.trace_id != episode.trace_id and not span.parent_id]
    assert own.name == "env.reset"


@pytest.mark.parametrize(
    ("script", "code", "failed"),
    [
        (Script(reset=lambda desktop: lost()), "reset_failed", ("arpo.reset", "env.reset")),
        (Script(execute=lambda desktop: lost()), "desktop_lost", ("arpo.step", "env.step")),
        (Script(evaluate=lambda desktop: lost()), "evaluator_failed", ("arpo.evaluate", "env.evaluate")),
    ],
)
def test_a_fault_is_the_status_of_every_span_that_it_ended(tmp_path, exported, script, code, failed) -> None:
    trajectory = played(tmp_path, Says(CLICK, FINISH), script)
    exported.flush()
    assert trajectory.problem.code.value == code
    assert {span.name for span in exported.spans if span.error} == {"arpo.episode", *failed}
    assert {span.error for span in exported.spans if span.error} == {code}
    (root,) = exported.named("arpo.episode")
    assert (root.attributes["arpo.fault.code"], root.attributes["arpo.fault"]) == (code, "environment")
    assert trajectory.operations[-1].problem is ProblemCode(code)


def test_an_episode_that_takes_too_long_closes_its_spans_and_the_servers(tmp_path, exported) -> None:
    script = Script(execute=lambda desktop: asyncio.sleep(30))
    trajectory = played(tmp_path, Says(CLICK), script, rules_=replace(rules(), timeout_s=0.5))
    exported.flush()
    (root,) = exported.named("arpo.episode")
    assert root.error == "step_timeout"
    (step,), (operation,) = exported.named("arpo.step"), exported.named("env.step")
    assert (step.attributes["arpo.outcome"], step.error) == ("cancelled", None)
    assert operation.attributes["arpo.outcome"] == "cancelled"
    assert exported.orphans() == []
    assert trajectory.operations[-1].problem == "cancelled"


def test_a_turn_that_is_no_action_has_no_step(tmp_path, exported) -> None:
    played(tmp_path, Says(NONSENSE))
    exported.flush()
    (root,) = exported.named("arpo.episode")
    assert exported.tree(root) == ("arpo.episode", [RESET, GENERATE, EVALUATE])
    assert root.attributes["arpo.format_errors"] == 1


def test_the_record_says_the_same_with_tracing_off(tmp_path) -> None:
    trajectory = played(tmp_path, Says(CLICK, FINISH))
    assert (trajectory.trace_id, trajectory.span_id) == (None, None)
    said = [(one.name, one.turn, [phase for phase, _, _ in one.phases]) for one in trajectory.operations]
    step = ["act", "settle", "encode"]
    assert said == [
        ("reset", None, ["lease", "encode"]), ("generate", 0, []), ("step", 0, step), ("generate", 1, []),
        ("step", 1, step), ("evaluate", None, []),
    ]  # fmt: skip
    for operation in trajectory.operations:
        assert 0 <= operation.start_s <= operation.start_s + operation.seconds <= trajectory.duration_s + 1e-4
        for _, start_s, seconds in operation.phases:
            assert operation.start_s - 1e-4 <= start_s
            assert start_s + seconds <= operation.start_s + operation.seconds + 1e-4


def test_a_real_desktops_phases_are_those_of_the_provider_and_of_the_task(tmp_path, exported) -> None:
    """`GuestDesktop` over simulated guests, which nobody has started before the reset."""
    provider = make_provider("simulated", screen=(640, 480), desktops=1, start_timeout_s=5.0)

    async def desktop() -> GuestDesktop:
        return GuestDesktop(provider)  # not started

    script = Script()
    script.desktop = desktop
    trajectory = played(tmp_path, Says(CLICK, FINISH), script)
    exported.flush()
    assert trajectory.valid, trajectory.problem
    (reset,) = exported.named("env.reset")
    assert [span.name for span in exported.children(reset)] == [
        "provider.start", "desktop.setup", "desktop.settle", "desktop.screenshot", "desktop.encode",
    ]  # fmt: skip
    (evaluation,) = exported.named("env.evaluate")
    assert [span.name for span in exported.children(evaluation)] == ["desktop.evaluate"]
