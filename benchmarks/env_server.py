"""What the env-server adds to a desktop, and what its wire costs; everything is measured in one run.

    python benchmarks/env_server.py                        # pictures of the simulated suite
    python benchmarks/env_server.py --pictures xvfb        # pictures of real applications
    python benchmarks/env_server.py --pictures FOLDER      # PNG files, in the order of their names
    python benchmarks/env_server.py --no-desktops          # without the resets and steps of real desktops

Overhead: `arpo-env-server` with simulated desktops in a process of its own; steps over HTTP, encoding and decoding
included, minus what the desktop itself took (the reply's `Server-Timing`). Back to back means that every session sends
its next step at once, so that all cores are busy; paced means a policy that thinks for `--think-s` on average.

Link: a server that plays the same pictures to every client, behind a link of 20 Mbit/s and 50 ms there and back;
an episode is a reset, 15 steps of which none ends it, and an evaluation. Bytes are HTTP's, in both directions;
TCP's own are not counted and its slow start is not simulated.

Desktops: resets and steps of xvfb desktops with applications, without HTTP, are measured by `benchmarks/desktops.py`,
which runs at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import random
import re
import signal
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from statistics import median, quantiles

import httpx

TESTS = Path(__file__).parents[1] / "tests"
sys.path += [str(TESTS / "server"), str(TESTS / "client")]

from fault_proxy import Link, fault_proxy  # noqa: E402
from server_process import server_process, wait_for_file  # noqa: E402

from arpo.desktop.guest_desktop import GuestDesktop  # noqa: E402
from arpo.protocol.actions import TERMINAL, Action, Click, Press, Type  # noqa: E402
from arpo.protocol.codec import JSON, MSGPACK, decode, encode  # noqa: E402
from arpo.protocol.messages import (  # noqa: E402
    CreateSession,
    EvaluateReply,
    EvaluateRequest,
    SessionCreated,
    SessionOptions,
    SessionState,
    SessionView,
    StepReply,
    StepRequest,
)
from arpo.providers.registry import make_provider  # noqa: E402
from arpo.server.service import ServerSettings, bind, running_server  # noqa: E402
from arpo.server.tokens import TokenFile  # noqa: E402
from arpo.tasks.model import Task  # noqa: E402
from arpo.tasks.sets import load_suite  # noqa: E402

SCREEN = (1280, 720)
STEPS = 15
TASK = {
    "id": "benchmark",
    "instruction": "Type.",
    "config": [{"type": "launch", "parameters": {"command": ["contacts"]}}],
    "evaluator": {"func": "infeasible"},
}
TOKEN = "benchmark"
WARM_UP = 3
_PHASE = re.compile(r"(\w+);dur=([0-9.]+)")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--sessions", type=int, nargs="+", default=[1, 16, 64, 256])
    parser.add_argument("--steps", type=int, default=1200, help="steps of all sessions together, about")
    parser.add_argument("--think-s", type=float, default=5.0, help="mean pause of a paced session")
    parser.add_argument("--pictures", default="simulated", help="simulated, xvfb or a folder of PNG files")
    parser.add_argument("--mbit-s", type=float, default=20.0)
    parser.add_argument("--rtt-ms", type=float, default=50.0)
    parser.add_argument("--no-desktops", action="store_true", help="leave out the xvfb desktops")
    parser.add_argument(
        "--quick", action="store_true", help="a few sessions and steps, no xvfb: does it work?"
    )
    parser.add_argument("--play", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.play is not None:
        asyncio.run(play(options.play))
        return
    if options.quick:
        options.sessions, options.steps, options.think_s, options.mbit_s = [1, 4], 24, 0.1, 1000.0
    print(
        f"{cpu_name()}, {os.cpu_count()} cores, load average {', '.join(f'{x:.1f}' for x in os.getloadavg())}"
    )
    errors = asyncio.run(overhead(options))
    asyncio.run(link(options))
    print(f"\nload average at the end {', '.join(f'{x:.1f}' for x in os.getloadavg())}")
    if not (options.no_desktops or options.quick):
        print("\n", flush=True)
        subprocess.run([sys.executable, str(Path(__file__).with_name("desktops.py"))], check=True)
    if errors:
        sys.exit(f"{errors} requests failed")


def cpu_name() -> str:
    """The processor as Linux names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def p(share: int, values: Sequence[float]) -> float:
    """A percentile."""
    return quantiles(values, n=100, method="inclusive")[share - 1] if len(values) > 1 else values[0]


def with_token(folder: Path) -> Path:
    """The folder, with a token file."""
    (folder / "token").touch(mode=0o600)
    (folder / "token").write_text(TOKEN + "\n")
    return folder


# The overhead of a step


@dataclass
class Measured:
    """Steps over HTTP: seconds each took, and seconds of them that were not the desktop's."""

    took: list[float] = field(default_factory=list)
    added: list[float] = field(default_factory=list)
    errors: int = 0


async def overhead(options: argparse.Namespace) -> int:
    """Print the table of overheads; returns how many requests failed."""
    alone = await desktop_alone(20 if options.quick else 200)
    print(f"\nsimulated desktop of {SCREEN[0]}x{SCREEN[1]}, screens of {alone.picture_bytes / 1000:.0f} kB: a step alone, "
          f"in this process, p50 {median(alone.took) * 1000:.2f} ms")  # fmt: skip
    errors = 0
    with (
        tempfile.TemporaryDirectory() as folder,
        server_process(with_token(Path(folder)), "--capacity", str(max(options.sessions))) as server,
    ):
        tls = ssl.create_default_context()  # made once: it takes longer than many steps

        def connect() -> httpx.AsyncClient:
            headers = {"Authorization": f"Bearer {TOKEN}", "Accept": MSGPACK}
            return httpx.AsyncClient(base_url=server.url, headers=headers, timeout=60, verify=tls)

        async with connect() as http:
            await until_ready(http)
            floor = await empty_requests(http, 20 if options.quick else 500)
            print(
                f"an empty request (GET /healthz) p50 {median(floor) * 1000:.2f} ms, p99 {p(99, floor) * 1000:.1f} ms"
            )
            print(f"\n{'sessions':>8}  {'pace':<14}{'steps':>6}{'steps/s':>9}{'step p50':>11}{'p99':>9}"
                  f"{'added p50':>11}{'p99':>9}{'of empty':>10}{'errors':>8}")  # fmt: skip
            for count in options.sessions:
                steps = max(4, options.steps // count)
                paces = [("back to back", 0.0, steps)]
                if count > 1:
                    paces.append(("paced", options.think_s, max(3, min(6, steps // 4))))
                for name, think_s, each in paces:
                    measured, seconds = await load(connect, count, each, think_s)
                    errors += measured.errors
                    print(
                        f"{count:>8}  {name:<14}{len(measured.took):>6}{len(measured.took) / seconds:>9.1f}"
                        f"{median(measured.took) * 1000:>8.1f} ms{p(99, measured.took) * 1000:>6.0f} ms"
                        f"{median(measured.added) * 1000:>8.1f} ms{p(99, measured.added) * 1000:>6.0f} ms"
                        f"{median(measured.added) / median(floor):>9.1f}x{measured.errors:>8}"
                    )
    return errors


@dataclass
class Alone:
    """Steps without a server: seconds each took, and the size of the screens."""

    took: list[float] = field(default_factory=list)
    picture_bytes: int = 0


async def desktop_alone(steps: int) -> Alone:
    """Steps of a desktop in this process."""
    alone = Alone()
    desktop = GuestDesktop(make_provider("simulated", screen=SCREEN))
    try:
        await desktop.reset(Task.model_validate(TASK))
        for number in range(steps + WARM_UP):
            started = time.perf_counter()
            alone.picture_bytes = len(await desktop.execute(typing(number)))
            if number >= WARM_UP:
                alone.took.append(time.perf_counter() - started)
    finally:
        await desktop.close()
    return alone


async def empty_requests(http: httpx.AsyncClient, count: int) -> list[float]:
    """Seconds of requests that do nothing: what any HTTP server of this kind adds."""
    seconds = []
    for _ in range(count):
        started = time.perf_counter()
        (await http.get("/healthz")).raise_for_status()
        seconds.append(time.perf_counter() - started)
    return seconds


def typing(number: int) -> list[Action]:
    """Actions that change the screen with every step, to one of two pictures that the desktop draws once: what is
    measured is the server, not the drawing.
    """
    if number == 0:
        return [Click(x=300, y=63)]
    return [Type(text="a")] if number % 2 else [Press(key="backspace")]


async def until_ready(http: httpx.AsyncClient) -> None:
    """Wait until every desktop can be leased."""
    async with asyncio.timeout(120):
        while True:
            answer = await http.get("/v1/capacity", headers={"Accept": JSON})
            reply = answer.raise_for_status().json()
            if reply["free"] == reply["capacity"]:
                return
            await asyncio.sleep(0.1)


async def load(
    connect: Callable[[], httpx.AsyncClient], sessions: int, steps: int, think_s: float
) -> tuple[Measured, float]:
    """Steps of many sessions at once, and how long all of them took.

    Every session has a client of its own: httpx looks at every connection of a client with every request, so one client
    for all of them would measure httpx.
    """
    measured = Measured()
    rng = random.Random(0)
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connect()) for _ in range(sessions)]
        opened = await asyncio.gather(*(open_session(http, SessionOptions()) for http in clients))
        pauses = [
            [rng.uniform(0, think_s), *(rng.expovariate(1 / think_s) for _ in range(steps))] if think_s
            else [0.0] * (steps + 1) for _ in opened
        ]  # fmt: skip
        started = time.perf_counter()
        await asyncio.gather(
            *(
                act(http, view, lease, steps, pause, measured)
                for http, (view, lease), pause in zip(clients, opened, pauses, strict=True)
            )
        )
        seconds = time.perf_counter() - started
        for http, (view, _) in zip(clients, opened, strict=True):
            await http.delete(f"/v1/sessions/{view.session_id}")
        await until_ready(clients[0])
    return measured, seconds


async def act(
    http: httpx.AsyncClient,
    view: SessionView,
    lease: int,
    steps: int,
    pauses: list[float],
    measured: Measured,
) -> None:
    """The steps of one session; the first few warm it up."""
    for number in range(steps + WARM_UP):
        if number >= WARM_UP:
            await asyncio.sleep(pauses[number - WARM_UP])
        started = time.perf_counter()
        body = encode(StepRequest(lease=lease, seq=number + 1, actions=typing(number)), MSGPACK)
        reply = await http.post(
            f"/v1/sessions/{view.session_id}/step", content=body, headers={"Content-Type": MSGPACK}
        )
        if reply.status_code != 200:
            measured.errors += 1
            print(f"{reply.status_code} {reply.text[:200]}", file=sys.stderr)
            return
        decode(StepReply, reply.content, MSGPACK)
        seconds = time.perf_counter() - started
        own = sum(float(ms) for _, ms in _PHASE.findall(reply.headers["server-timing"])) / 1000
        if number >= WARM_UP:
            measured.took.append(seconds)
            measured.added.append(seconds - own)


async def open_session(
    http: httpx.AsyncClient, options: SessionOptions, wire: str = MSGPACK
) -> tuple[SessionView, int]:
    """A session at rest, and its lease."""
    reply = await http.post(
        "/v1/sessions",
        content=encode(CreateSession(task=TASK, options=options), wire),
        headers={"Content-Type": wire},
    )
    created = decode(SessionCreated, reply.raise_for_status().content, wire)
    while True:
        got = await http.get(f"/v1/sessions/{created.session_id}", params={"wait_s": 25})
        view = decode(SessionView, got.raise_for_status().content, wire)
        if view.state is not SessionState.RESETTING:
            return view, created.lease


# A slow link

Episode = Callable[[httpx.AsyncClient], Awaitable[None]]


async def link(options: argparse.Namespace) -> None:
    """Print what an episode costs over a slow link."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pictures = await recorded(options.pictures)
        for number, picture in enumerate(pictures):
            (folder / f"{number:03}.png").write_bytes(picture)
        kilobytes = sum(map(len, pictures)) / len(pictures) / 1000
        same = sum(before == after for before, after in pairwise(pictures))
        print(
            f"\n{STEPS}-step episode over {options.mbit_s:g} Mbit/s, {options.rtt_ms:g} ms there and back; "
            f"pictures: {options.pictures}, {len(pictures)} PNGs of {kilobytes:.0f} kB on average, "
            f"{same} equal to the one before"
        )
        print(f"\n{'':<34}{'kB':>10}{'of legacy':>12}{'seconds':>10}{'of legacy':>12}")
        kinds: dict[str, Episode] = {
            "legacy JSON, png": legacy_episode,
            "v1 JSON, png": lambda http: v1_episode(http, JSON, "png"),
            "v1 msgpack, png": lambda http: v1_episode(http, MSGPACK, "png"),
            "v1 msgpack, webp lossless": lambda http: v1_episode(http, MSGPACK, "webp"),
        }
        with playing(folder) as url:
            base: tuple[int, float] | None = None
            for kind, episode in kinds.items():
                sent, seconds = await over_link(url, episode, options)
                base = base or (sent, seconds)
                print(
                    f"{kind:<34}{sent / 1000:>10.0f}{base[0] / sent:>10.1f}x "
                    f"{seconds:>10.2f}{base[1] / seconds:>10.1f}x"
                )


async def over_link(url: str, episode: Episode, options: argparse.Namespace) -> tuple[int, float]:
    """Bytes and seconds of an episode."""
    up = Link(bytes_per_s=options.mbit_s * 1e6 / 8, latency_s=options.rtt_ms / 2000)
    down = replace(up)
    async with (
        fault_proxy(url, up=up, down=down) as proxy,
        httpx.AsyncClient(
            base_url=proxy.url, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=1200
        ) as http,
    ):
        started = time.perf_counter()
        await episode(http)
        seconds = time.perf_counter() - started
    return up.bytes + down.bytes, seconds


async def legacy_episode(http: httpx.AsyncClient) -> None:
    """As a client of the first server runs it."""
    reply = (await http.post("/env/reset", json={"task_config": TASK})).raise_for_status().json()
    for _ in range(STEPS):
        assert not reply["is_done"]
        prediction = "Thought: Click.\nAction: click(start_box='(100,100)')"
        reply = (await http.post("/env/step", json={"prediction": prediction})).raise_for_status().json()
    assert len(reply["obs_messages"]) == 3 + 2 * STEPS
    (await http.post("/env/evaluate", json={})).raise_for_status()


async def v1_episode(http: httpx.AsyncClient, wire: str, picture: str) -> None:
    """The same through the session API."""
    http.headers["Accept"] = wire
    content_type = {"Content-Type": wire}
    options = SessionOptions.model_validate({"screenshot": {"format": picture}})
    view, lease = await open_session(http, options, wire)
    path = f"/v1/sessions/{view.session_id}"
    for seq in range(1, STEPS + 1):
        body = encode(StepRequest(lease=lease, seq=seq, actions=[Click(x=100, y=100)]), wire)
        reply = await http.post(f"{path}/step", content=body, headers=content_type)
        decode(StepReply, reply.raise_for_status().content, wire)
    body = encode(EvaluateRequest(lease=lease), wire)
    reply = await http.post(f"{path}/evaluate", content=body, headers=content_type)
    decode(EvaluateReply, reply.raise_for_status().content, wire)
    (await http.delete(path)).raise_for_status()


# Pictures


async def recorded(source: str) -> list[bytes]:
    """The screens of a reset and of `STEPS` steps: of a suite's demonstrations, or from files."""
    if source not in ("simulated", "xvfb"):
        pictures = in_folder(Path(source))
        if len(pictures) <= STEPS:
            sys.exit(
                f"--pictures {source}: {len(pictures)} PNG files; fix: a folder with {STEPS + 1} or more"
            )
        return pictures[: STEPS + 1]
    suite = load_suite("simulated" if source == "simulated" else "local")
    provider = make_provider(source, screen=SCREEN)
    await provider.preflight()
    desktop = GuestDesktop(provider)
    pictures = []
    try:
        for task in suite.tasks():
            pictures.append(await desktop.reset(task))
            for turn in suite.demonstration(task).turns:
                if not isinstance(turn.actions[-1], TERMINAL):
                    pictures.append(await desktop.execute(turn.actions))
            if len(pictures) > STEPS:
                break
    finally:
        await desktop.close()
        await provider.close()
    return pictures[: STEPS + 1]


def in_folder(folder: Path) -> list[bytes]:
    """A folder's PNG files, in the order of their names."""
    return [file.read_bytes() for file in sorted(folder.glob("*.png"))]


class Player:
    """A desktop that shows recorded pictures, one after the other."""

    screen = SCREEN

    def __init__(self, pictures: list[bytes]) -> None:
        self._pictures = pictures
        self._shown = 0

    async def clean(self) -> None:
        """Nothing is ever touched."""

    async def reset(self, task: Task) -> bytes:
        """The first picture."""
        self._shown = 0
        return self._pictures[0]

    async def execute(self, actions: Sequence[Action]) -> bytes:
        """The next picture."""
        self._shown += 1
        return self._pictures[self._shown]

    async def evaluate(self) -> float:
        """A score."""
        return 1.0

    async def close(self) -> None:
        """Nothing is held."""


async def play(folder: Path) -> None:
    """Serve a folder's pictures until SIGTERM; the server's URL is written to `url` beside them."""
    pictures = in_folder(folder)

    async def desktop() -> Player:
        return Player(pictures)

    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    settings = ServerSettings(provider="pictures", screen=SCREEN, capacity=1)
    async with running_server(
        desktop, bind("127.0.0.1", 0), TokenFile(with_token(folder) / "token"), settings
    ) as server:
        (folder / "url").write_text(server.url)
        await stop.wait()


@contextmanager
def playing(folder: Path) -> Iterator[str]:
    """The URL of a server in a process of its own that plays a folder's pictures."""
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, __file__, "--play", str(folder)],
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
        )
    try:
        yield wait_for_file(folder / "url", process)
    finally:
        process.terminate()
        process.wait(30)


if __name__ == "__main__":
    main()
