"""How long desktops take to reset and to step on this machine, and what they compute meanwhile.

    python benchmarks/desktops.py                       # xvfb: a sheet, a letter, a terminal; about three minutes
    python benchmarks/desktops.py --desktops 4          # the same, four desktops at once
    python benchmarks/desktops.py --provider simulated  # seconds; what the desktop layer itself costs

A reset is what a session waits for, HTTP aside: the first screenshot of a task, its application opened and painted.
`soft`: the desktop was cleaned in the background before it was leased, as the env-server's pool does. `hard`: the clean
guest is made in the foreground, on a desktop that was just used. A step is one action with the wait for quiet pixels
and the new screenshot. Times are in seconds; CPU is that of all processes, the applications' included.

Other work on the machine lengthens everything: the load average is printed before and after.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from arpo.desktop.guest_desktop import GuestDesktop
from arpo.guest_client import GuestClient, Settle
from arpo.protocol.actions import Action, Click, Hotkey, Press, Scroll, Type
from arpo.providers.base import Guest, Provider
from arpo.providers.registry import make_provider
from arpo.tasks.model import Task
from arpo.tasks.sets import load_suite
from arpo.telemetry import phases

TASKS = {
    "xvfb": ("local", ("calc-bold-header", "writer-add-title", "terminal-count-lines")),
    "simulated": ("simulated", ("notes-milk", "calculator-sum")),
}
ACTIONS: tuple[Action, ...] = (
    Click(x=300, y=300),
    Type(text="hello"),
    Press(key="enter"),
    Click(x=500, y=400),
    Type(text="12"),
    Hotkey(keys=("ctrl", "b")),
    Scroll(x=400, y=300, direction="down", amount=3),
    Press(key="tab"),
)
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Measure and print."""
    options = _options()
    suite_name, names = TASKS[options.provider]
    suite = load_suite(suite_name)
    tasks = [suite.task(name) for name in options.task or names]
    print(f"{_cpu_name()}, {os.cpu_count()} CPUs, load average {os.getloadavg()[0]:.2f}")
    print(f"{options.provider}, {options.desktops} desktop(s) at once, {options.episodes} episodes a row\n")
    asyncio.run(_measure(options, tasks))
    print(f"\nload average {os.getloadavg()[0]:.2f}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--provider", choices=sorted(TASKS), default="xvfb")
    parser.add_argument("--desktops", type=_positive, default=1, help="how many run at once (default 1)")
    parser.add_argument(
        "--episodes", type=_positive, default=10, help="resets of each kind a task (default 10)"
    )
    parser.add_argument("--steps", type=_positive, default=8, help="steps an episode (default 8)")
    parser.add_argument("--task", action="append", help="a task of the provider's suite; may be repeated")
    return parser.parse_args()


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


@dataclass
class Samples:
    """What was measured of one task: seconds of resets and steps, their phases, CPU seconds by call and process."""

    resets: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    reset_phases: list[phases.Phases] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)
    step_phases: list[phases.Phases] = field(default_factory=list)
    cpu_s: dict[str, dict[str, float]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(float))
    )


async def _measure(options: argparse.Namespace, tasks: Sequence[Task]) -> None:
    provider = _MeteredProvider(make_provider(options.provider, screen=(1280, 720)))
    try:
        await provider.preflight()
        desktops = [GuestDesktop(provider) for _ in range(options.desktops)]
        await asyncio.gather(*(desktop.start() for desktop in desktops))
        measured = {task.id: await _episodes(options, provider, desktops, task) for task in tasks}
        await asyncio.gather(*(desktop.close() for desktop in desktops))
    finally:
        await provider.close()
    _print_resets(measured)
    _print_steps(measured, options)
    if options.desktops == 1:
        _print_cpu(measured)


async def _episodes(
    options: argparse.Namespace, provider: _MeteredProvider, desktops: Sequence[GuestDesktop], task: Task
) -> Samples:
    samples = Samples()
    numbers = iter(range(options.episodes))

    async def work(desktop: GuestDesktop) -> None:
        for _ in numbers:
            for kind in ("soft", "hard"):
                if kind == "soft":
                    await desktop.clean()
                    await asyncio.sleep(0.5)  # a desktop waits for its lease
                with phases.record() as taken:
                    start = time.monotonic()
                    await desktop.reset(task)
                    samples.resets[kind].append(time.monotonic() - start)
                if kind == "soft":
                    samples.reset_phases.append(taken)
            await step(desktop)

    async def step(desktop: GuestDesktop) -> None:
        with provider.metering(samples.cpu_s):
            for action in itertools.islice(itertools.cycle(ACTIONS), options.steps):
                with phases.record() as taken:
                    start = time.monotonic()
                    await desktop.execute([action])
                    samples.steps.append(time.monotonic() - start)
                samples.step_phases.append(taken)

    await asyncio.gather(*(work(desktop) for desktop in desktops))
    return samples


class _MeteredProvider:
    """A provider whose guests say how much CPU their calls cost, while `metering`.

    Only with one desktop: of what runs at the same time nobody can tell whose it is.
    """

    def __init__(self, provider: Provider) -> None:
        self._provider = provider
        self.sink: dict[str, dict[str, float]] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._provider, name)

    async def start(self) -> Guest:
        return self._metered(await self._provider.start())

    async def reset(self, guest: Guest) -> Guest:
        return self._metered(await self._provider.reset(guest))

    @contextmanager
    def metering(self, sink: dict[str, dict[str, float]]) -> Iterator[None]:
        self.sink = sink
        try:
            yield
        finally:
            self.sink = None

    def _metered(self, guest: Guest) -> Guest:
        return replace(guest, client=_MeteredClient(guest.client, self))


class _MeteredClient:
    def __init__(self, client: GuestClient, provider: _MeteredProvider) -> None:
        self._client = client
        self._provider = provider

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    async def act(self, actions: Sequence[Action], settle: Settle) -> None:
        with self._metered("act, settle"):
            await self._client.act(actions, settle)

    async def screenshot(self) -> bytes:
        with self._metered("screenshot"):
            return await self._client.screenshot()

    @contextmanager
    def _metered(self, call: str) -> Iterator[None]:
        sink = self._provider.sink
        if sink is None:
            yield
            return
        before, own = _cpu_seconds(), time.process_time()
        yield
        sink[call]["this process"] += time.process_time() - own
        for name, seconds in _cpu_seconds().items():
            sink[call][name] += seconds - before.get(name, 0.0)


def _cpu_seconds() -> dict[str, float]:
    """CPU seconds so far of all processes that this one has started, by what they are."""
    parents: dict[int, int] = {}
    used: dict[int, tuple[str, float]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            head, _, tail = stat.read_text().rpartition(")")
        except OSError:
            continue  # ended meanwhile
        pid, fields = int(stat.parent.name), tail.split()
        parents[pid] = int(fields[1])
        used[pid] = (head.partition("(")[2], (int(fields[11]) + int(fields[12])) * _TICK_S)
    seconds: dict[str, float] = defaultdict(float)
    for pid, (name, cpu_s) in used.items():
        if pid != os.getpid() and _descends(pid, parents):
            seconds[{"Xvfb": "Xvfb", "python3": "guest server"}.get(name, "programs")] += cpu_s
    return seconds


def _descends(pid: int, parents: dict[int, int]) -> bool:
    while pid in parents:
        if pid == os.getpid():
            return True
        pid = parents[pid]
    return False


def _print_resets(measured: dict[str, Samples]) -> None:
    print(f"{'reset':24} {'':4} {'p50':>6} {'p95':>6} {'p99':>6}   p50 of its phases")
    for task, samples in measured.items():
        for kind, seconds in samples.resets.items():
            said = _phases(samples.reset_phases) if kind == "soft" else ""
            print(f"{task:24} {kind:4} {_percentiles(seconds)}   {said}".rstrip())


def _print_steps(measured: dict[str, Samples], options: argparse.Namespace) -> None:
    print(f"\n{'step':24} {'':4} {'p50':>6} {'p95':>6} {'p99':>6}   p50 of its phases")
    for task, samples in measured.items():
        print(f"{task:24} {'':4} {_percentiles(samples.steps)}   {_phases(samples.step_phases)}")
        rate = options.desktops / (sum(samples.steps) / len(samples.steps))
        print(f"{'':29} {rate:.1f} steps/s on {options.desktops} desktop(s) that do nothing but step")


def _print_cpu(measured: dict[str, Samples]) -> None:
    print(f"\n{'CPU seconds a step':24} of which")
    for task, samples in measured.items():
        for call, by_process in samples.cpu_s.items():
            count = len(samples.steps)
            said = ", ".join(f"{name} {seconds / count:.4f}" for name, seconds in sorted(by_process.items()))
            print(f"{task:24} {call:12} {sum(by_process.values()) / count:.4f}: {said}")


def _percentiles(seconds: Sequence[float]) -> str:
    cuts = quantiles(seconds, n=100, method="inclusive") if len(seconds) > 1 else [seconds[0]] * 99
    return " ".join(f"{value:6.3f}" for value in (median(seconds), cuts[94], cuts[98]))


def _phases(taken: Sequence[phases.Phases]) -> str:
    names = dict.fromkeys(name for one in taken for name in one)
    return ", ".join(f"{name} {median(one.get(name, 0.0) for one in taken):.3f}" for name in names)


def _cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")


if __name__ == "__main__":
    main()
