"""Hundreds of episodes over a network that does everything networks do: each ends in order, nothing happens twice,
nothing that was acknowledged is missing, no desktop is left behind, and no fault becomes a score.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import pytest
from fault_proxy import NetFault, RandomFaults, fault_proxy
from scripted_desktop import TOKEN, picture

from arpo.client import Backoff, BreakerRules, ClientTimeouts, EnvClient
from arpo.desktop.base import Desktop
from arpo.desktop.evaluators import EvaluatorPool
from arpo.desktop.guest_desktop import GuestDesktop
from arpo.guest_client import Settle
from arpo.protocol.actions import Action, Finished, Hotkey, Type, Wait
from arpo.protocol.messages import SessionOptions
from arpo.protocol.problems import Fault, ProblemError
from arpo.providers.simulated.provider import SimulatedProvider
from arpo.server.service import ServerSettings, bind, running_server
from arpo.server.tokens import TokenFile
from arpo.tasks.model import Task

EPISODES = 200
CLIENTS = 4
EPISODES_AT_ONCE = 4
"""Of each client: more than there are desktops, so that some wait for one."""
DESKTOPS = 10
CANCELLED_SHARE = 0.1
NEVER_SILENT = SessionOptions(idle_timeout_s=3600)
"""The idle time-out would hide a leak."""


@dataclass(frozen=True)
class Network:
    """share: of the requests that meet a fault. refused_s: how long, every second, nothing gets through."""

    share: float
    refused_s: float
    timeouts: ClientTimeouts
    backoff: Backoff
    breaker: BreakerRules


POOR = Network(
    share=0.2,
    refused_s=0.0,
    timeouts=ClientTimeouts(connect_s=2, read_s=0.5, poll_s=0.3, outage_s=15, close_s=10),
    backoff=Backoff(attempts=5, first_s=0.01, longest_s=0.2),
    breaker=BreakerRules(failures=8, first_s=0.05, longest_s=0.5),
)
"""Patient clients get through nearly always."""

TERRIBLE = Network(
    share=0.35,
    refused_s=0.2,
    timeouts=ClientTimeouts(connect_s=2, read_s=0.4, poll_s=0.3, outage_s=0.2, close_s=20),
    backoff=Backoff(attempts=3, first_s=0.01, longest_s=0.2),
    breaker=BreakerRules(failures=8, first_s=0.05, longest_s=0.2),
)
"""Impatient clients give many episodes up, at every point of an episode."""


# What the desktops did


@dataclass
class Reset:
    """What a desktop did since it was reset to an episode's task."""

    steps: list[list[Action]] = field(default_factory=list)
    screens: list[bytes] = field(default_factory=list)
    scored_after: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)


class Recorded:
    """A desktop that writes down what is done to it, by task; each episode has a task of its own."""

    def __init__(self, inner: Desktop, resets: dict[str, list[Reset]]) -> None:
        self.inner = inner
        self.resets = resets
        self.now = Reset()

    @property
    def screen(self) -> tuple[int, int]:
        return self.inner.screen

    async def clean(self) -> None:
        await self.inner.clean()

    async def reset(self, task: Task) -> bytes:
        self.now = Reset()
        self.resets[task.id].append(self.now)
        return self._seen(await self.inner.reset(task))

    async def execute(self, actions: Sequence[Action]) -> bytes:
        self.now.steps.append(list(actions))
        return self._seen(await self.inner.execute(actions))

    async def evaluate(self) -> float:
        self.now.scored_after.append(len(self.now.steps))
        self.now.scores.append(await self.inner.evaluate())
        return self.now.scores[-1]

    async def close(self) -> None:
        await self.inner.close()

    def _seen(self, png: bytes) -> bytes:
        self.now.screens.append(png)
        return png


class Tape:
    """A desktop whose screen and score follow from what was typed, and from nothing else."""

    screen = (160, 120)

    async def clean(self) -> None: ...

    async def reset(self, task: Task) -> bytes:
        self.typed = ""
        self.number = int(task.id)
        return self._picture()

    async def execute(self, actions: Sequence[Action]) -> bytes:
        await asyncio.sleep(random.uniform(0, 0.02))
        self.typed += typed([actions])
        return self._picture()

    async def evaluate(self) -> float:
        await asyncio.sleep(random.uniform(0, 0.02))
        return digest(self.typed)

    async def close(self) -> None: ...

    def _picture(self) -> bytes:
        return picture(self.number * 256 + len(self.typed) % 256)


def typed(steps: Sequence[Sequence[Action]]) -> str:
    return "".join(action.text for step in steps for action in step if isinstance(action, Type))


def digest(text: str) -> float:
    """A score that no other text has."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48


# What the clients do


@dataclass
class Attempt:
    """An episode as its client saw it."""

    task: dict
    steps: list[list[Action]]
    expected_score: float
    cancel_after_s: float | None
    sent: int = 0
    acknowledged: int = 0
    screens: list[bytes] = field(default_factory=list)
    score: float | None = None
    problem: ProblemError | None = None
    cancelled: bool = False

    async def run(self, client: EnvClient) -> None:
        try:
            async with asyncio.timeout(self.cancel_after_s):
                await self._play(client)
        except TimeoutError:
            self.cancelled = True
        except ProblemError as error:
            self.problem = error

    async def _play(self, client: EnvClient) -> None:
        async with await client.open_session(self.task, NEVER_SILENT) as session:
            self.screens.append(session.observation.screenshot.data)
            for step in self.steps:
                self.sent += 1
                reply = await session.step(step)
                self.acknowledged += 1
                assert reply.seq == self.acknowledged
                self.screens.append(session.observation.screenshot.data)
            self.score = await session.evaluate()


def attempt(number: int, chance: random.Random) -> Attempt:
    """An episode that types a text in pieces, with pauses in which nothing changes on the screen."""
    pieces = [f"{number}.{turn};" for turn in range(chance.randint(1, 4))]
    steps: list[list[Action]] = [[Type(text=piece)] for piece in pieces]
    steps.insert(chance.randrange(len(steps) + 1), [Wait(seconds=0)])
    steps.append([Hotkey(keys=["ctrl", "s"]), Finished()])
    right = chance.random() < 0.7
    return Attempt(
        task={
            "id": str(number),
            "instruction": "type",
            "config": [{"type": "launch", "parameters": {"command": ["notes", "/home/user/note.txt"]}}],
            "evaluator": {
                "func": "exact_match",
                "result": {"type": "vm_command_line", "command": "cat /home/user/note.txt"},
                "expected": {
                    "type": "rule",
                    "rules": {"expected": "".join(pieces) if right else "another text"},
                },
            },
        },
        steps=steps,
        expected_score=float(right),
        cancel_after_s=chance.uniform(0, 1) if chance.random() < CANCELLED_SHARE else None,
    )


# The proof


@asynccontextmanager
async def desktops(kind: str):
    if kind == "tape":

        async def tape() -> Desktop:
            return Tape()

        yield tape
        return
    provider, evaluators = SimulatedProvider(), EvaluatorPool(workers=1)
    quiet = Settle(quiet_s=0.0, ceiling_s=1.0)

    async def simulated() -> Desktop:
        desktop = GuestDesktop(provider, settle=quiet, setup_settle=quiet, evaluators=evaluators)
        await desktop.start()
        return desktop

    try:
        yield simulated
    finally:
        await provider.close()
        await evaluators.close()


async def play_all(
    kind: str, network: Network, folder, seed: int, attempts: list[Attempt]
) -> tuple[dict, Counter]:
    """Run the episodes; afterwards every desktop must be free again. What the desktops did, and the faults."""
    token_file = folder / "token"
    token_file.touch(mode=0o600)
    token_file.write_text(TOKEN + "\n")
    resets: dict[str, list[Reset]] = defaultdict(list)
    settings = ServerSettings(provider=kind, screen=(640, 480), capacity=DESKTOPS)
    async with AsyncExitStack() as stack:
        make = await stack.enter_async_context(desktops(kind))

        async def recorded() -> Desktop:
            return Recorded(await make(), resets)

        listener = bind("127.0.0.1", 0)
        server = await stack.enter_async_context(
            running_server(recorded, listener, TokenFile(token_file), settings)
        )
        observer = await stack.enter_async_context(EnvClient(server.url, TOKEN))
        await observer.wait_ready(30)
        faults = RandomFaults(seed, network.share)
        proxy = await stack.enter_async_context(
            fault_proxy(server.url, choose=faults, delay_s=0.1, throttle_bytes_per_s=50_000)
        )
        queue = iter(attempts)

        async def worker(client: EnvClient) -> None:
            for episode in queue:
                await episode.run(client)
                if episode.problem is not None:
                    await asyncio.sleep(episode.problem.problem.retry_after_s or 0.0)

        async def trainer() -> None:
            async with (
                EnvClient(
                    proxy.url,
                    TOKEN,
                    timeouts=network.timeouts,
                    backoff=network.backoff,
                    breaker=network.breaker,
                ) as client,
                asyncio.TaskGroup() as group,
            ):
                for _ in range(EPISODES_AT_ONCE):
                    group.create_task(worker(client))

        async def outages() -> None:
            while network.refused_s:
                await asyncio.sleep(1)
                await proxy.refuse()
                await asyncio.sleep(network.refused_s)
                await proxy.listen()

        breaking = asyncio.create_task(outages())
        async with asyncio.TaskGroup() as group:
            for _ in range(CLIENTS):
                group.create_task(trainer())
        breaking.cancel()
        # The clients have gone; what they left behind would stay for an hour.
        async with asyncio.timeout(30):
            while (await observer.capacity()).free < DESKTOPS:
                await asyncio.sleep(0.05)
        return dict(resets), proxy.faults


def check(kind: str, episode: Attempt, resets: list[Reset]) -> None:
    assert len(resets) <= 1, "an episode got two desktops"
    done = resets[0] if resets else Reset()
    acknowledged = episode.steps[: episode.acknowledged]
    in_doubt = episode.steps[episode.acknowledged : episode.sent]
    assert done.steps in (acknowledged, acknowledged + in_doubt), "a step was lost, repeated or out of order"
    assert episode.screens == done.screens[: len(episode.screens)], "not the screens of its desktop"
    assert len(done.scored_after) <= 1, "evaluated twice"
    if episode.problem is not None:
        assert episode.problem.fault is Fault.ENVIRONMENT, "the network is nobody's mistake"
    if episode.score is None:
        assert episode.problem is not None or episode.cancelled
        return
    assert episode.acknowledged == len(episode.steps)
    assert done.scored_after == [len(episode.steps)], "a score without an evaluation of the final state"
    assert episode.score == done.scores[0]
    right = digest(typed(episode.steps)) if kind == "tape" else episode.expected_score
    assert episode.score == right


def run_and_check(kind: str, network: Network, folder) -> Counter:
    """How the episodes ended."""
    seed = int(os.environ.get("ARPO_TEST_SEED", random.randrange(2**32)))
    print(f"ARPO_TEST_SEED={seed}")
    chance = random.Random(seed)
    attempts = [attempt(number, chance) for number in range(EPISODES)]
    resets, faults = asyncio.run(play_all(kind, network, folder, seed, attempts))
    for episode in attempts:
        check(kind, episode, resets.get(episode.task["id"], []))
    assert set(faults) == set(NetFault), "not every fault was tried"
    ends = Counter(
        "scored"
        if episode.score is not None
        else episode.problem.code.value
        if episode.problem
        else "cancelled"
        for episode in attempts
    )
    broken_off = sum(episode.score is None and episode.sent > 0 for episode in attempts)
    print(f"{dict(ends)}, {broken_off} of them after their first step; {faults.total()} faults")
    return ends


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tape", "simulated"])
def test_episodes_over_a_poor_network_end_in_order(tmp_path, kind: str) -> None:
    ends = run_and_check(kind, POOR, tmp_path)
    assert ends["scored"] > EPISODES / 2


@pytest.mark.slow
def test_episodes_that_a_terrible_network_ends_leave_nothing_behind_and_get_no_score(tmp_path) -> None:
    ends = run_and_check("tape", TERRIBLE, tmp_path)
    assert ends["scored"] > 0
    assert ends["backend_lost"] > EPISODES / 10
