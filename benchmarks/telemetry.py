"""What tracing costs a step: the same steps with and without it, in turns, in one run.

    python benchmarks/telemetry.py                          # steps of xvfb desktops
    python benchmarks/telemetry.py --provider simulated     # steps that take as good as no time themselves
    python benchmarks/telemetry.py --quick                  # does it work?

One desktop; its env-server and the client are both in this process, over a socket, and export together or not at all; a
collector in a process of its own throws away what it gets. Blocks of steps come in the order with, without, without, with.
A step is all that an episode does for one: span, request, the desktop's work, reply, record.

wall: the ratio of the medians, and of the means, of a step's duration. CPU: seconds of this process, all threads, the
exporters' included; the difference is also given as a share of a step's duration without tracing. On a machine that has
other things to do, look at the CPU.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import fmean, median

sys.path.append(str(Path(__file__).parent))

from measuring import cpu_name, positive

from arpo.client import EnvClient, Session
from arpo.desktop.guest_desktop import GuestDesktop
from arpo.protocol.actions import Type
from arpo.providers.registry import make_provider
from arpo.rollout.operations import Operations
from arpo.server.service import ServerSettings, bind, running_server
from arpo.server.tokens import TokenFile
from arpo.telemetry import export, metrics, names, tracing
from arpo.telemetry.export import Exporting

SCREEN = (1280, 720)
PROGRAMS = {"xvfb": ["mousepad"], "simulated": ["notes"]}


@dataclass
class Side:
    """Steps of one kind. took: seconds of each; cpu_s: of all."""

    exporters: Exporting | None
    took: list[float] = field(default_factory=list)
    cpu_s: float = 0.0


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--provider", choices=sorted(PROGRAMS), default="xvfb")
    parser.add_argument("--steps", type=positive, default=25, help="in a block")
    parser.add_argument("--rounds", type=positive, default=8, help="of four blocks")
    parser.add_argument("--quick", action="store_true", help="few steps of simulated desktops")
    parser.add_argument("--sink", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.sink is not None:
        sink(options.sink)
        return
    if options.quick:
        options.provider, options.steps, options.rounds = "simulated", 5, 2
        os.environ["OTEL_BSP_SCHEDULE_DELAY"] = "200"
    loads = ", ".join(f"{x:.1f}" for x in os.getloadavg())
    print(f"{cpu_name()}, load average {loads}")
    with tempfile.TemporaryDirectory() as folder, collecting(Path(folder)) as url:
        on, off = asyncio.run(measure(options, Path(folder), url))
    report(options.provider, on, off)
    print(f"load average at the end {', '.join(f'{x:.1f}' for x in os.getloadavg())}")


async def measure(options: argparse.Namespace, folder: Path, url: str) -> tuple[Side, Side]:
    """The blocks, in turns."""
    os.environ[export.ENDPOINT] = url
    exporters = export.begin(names.TRAINER, print)
    if exporters is None:
        sys.exit("nothing to measure; fix: pip install 'arpo[telemetry]'")
    use(None)
    on, off = Side(exporters), Side(None)
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text("benchmark\n")
    provider = make_provider(options.provider, screen=SCREEN, desktops=1, start_timeout_s=120.0)
    await provider.preflight()

    async def desktop() -> GuestDesktop:
        started = GuestDesktop(provider)
        await started.start()
        return started

    settings = ServerSettings(provider=options.provider, screen=SCREEN, capacity=1)
    try:
        async with (
            running_server(desktop, bind("127.0.0.1", 0), TokenFile(token), settings) as server,
            EnvClient(server.url, "benchmark") as client,
        ):
            await client.wait_ready(120)
            async with await client.open_session(task(options)) as session:
                for side in (off, on):  # warms both up
                    await block(side, session, 5)
                    side.took.clear()
                    side.cpu_s = 0.0
                for _ in range(options.rounds):
                    for side in (on, off, off, on):
                        await block(side, session, options.steps)
    finally:
        await provider.close()
    exporters.shutdown()
    return on, off


async def block(side: Side, session: Session, steps: int) -> None:
    """Steps of one kind, an episode's in the eyes of tracing; and what is exported of them."""
    use(side.exporters)
    before = time.process_time()
    with tracing.span(names.EPISODE):
        operations = Operations()
        for turn in range(steps):
            began = time.perf_counter()
            with operations.of("step", turn, {names.ACTIONS: 1}):
                await session.step([Type(text="ab")])
            side.took.append(time.perf_counter() - began)
    use(None)
    await asyncio.sleep(
        pause_s()
    )  # the exporters' delay is over: what they do is counted here, in both kinds
    side.cpu_s += time.process_time() - before


def pause_s() -> float:
    """A little more than spans wait before they are exported."""
    return float(os.environ.get("OTEL_BSP_SCHEDULE_DELAY") or 5000) / 1000 + 0.2


def use(exporters: Exporting | None) -> None:
    """Turn this process's exporting on or off."""
    tracing.use(exporters.spans if exporters else None)
    metrics.use(exporters.metrics if exporters else None)


def report(provider: str, on: Side, off: Side) -> None:
    """Print the comparison."""
    steps = len(on.took)
    print(f"{provider}: {steps} steps of each kind")
    for name, side in (("with", on), ("without", off)):
        print(
            f"  {name:8} median {median(side.took) * 1e3:8.3f} ms  mean {fmean(side.took) * 1e3:8.3f} ms  "
            f"CPU {side.cpu_s / steps * 1e3:7.3f} ms a step"
        )
    added_ms = (on.cpu_s - off.cpu_s) / steps * 1e3
    share = added_ms / (median(off.took) * 1e3)
    print(
        f"  wall: median × {median(on.took) / median(off.took):.4f}, mean × {fmean(on.took) / fmean(off.took):.4f}; "
        f"CPU: {added_ms:+.3f} ms a step, {share:+.2%} of its duration"
    )


def task(options: argparse.Namespace) -> dict[str, object]:
    """A program that takes letters."""
    launch = {"type": "launch", "parameters": {"command": PROGRAMS[options.provider]}}
    return {"id": "type", "instruction": "Type.", "config": [launch], "evaluator": {"func": "infeasible"}}


@contextlib.contextmanager
def collecting(folder: Path) -> Iterator[str]:
    """The URL of a collector in a process of its own."""
    said = folder / "sink"
    process = subprocess.Popen([sys.executable, __file__, "--sink", str(said)], stdin=subprocess.DEVNULL)
    try:
        while not said.exists():
            if process.poll() is not None:
                sys.exit("the collector ended")
            time.sleep(0.05)
        yield said.read_text()
    finally:
        process.kill()
        process.wait()


def sink(said: Path) -> None:
    """Take everything and keep nothing."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    half = said.with_suffix(".part")
    half.write_text(f"http://127.0.0.1:{server.server_port}")
    half.rename(said)
    server.serve_forever()


if __name__ == "__main__":
    main()
