"""Whether a long run keeps its memory: trains until many turns were taken on desktops, and watches the driver's memory.

    python benchmarks/soak.py                 # 16 000 turns; hours on two cores
    python benchmarks/soak.py --turns 2000
    python benchmarks/soak.py --read RUN      # of a run directory that is there, also while the run goes on

A real `arpo train` (tiny policy with a warm start, simulated desktops, rollouts one version ahead) is stopped by SIGTERM
when it has taken the turns. `driver/rss_gib` of every step in metrics.jsonl tells the driver's memory, in which engine and
learner are, too. Growth is the slope of the last half of the turns: what fills up to a bound has done so by then. Exit
code 1: the driver grew by more than --bound MiB per 1000 turns. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from kills import children, command_line
from measuring import cpu_name, positive

ROOT = Path(__file__).parent.parent
BOUND = 0.5
"""MiB per 1000 turns. A screenshot (18 KiB) kept in memory for every turn would be 18, a trajectory's line (1.6 KiB) 1.6.
Less is not told apart from noise: steps differ by a few MiB, and not independently of those before them.
"""
PATIENCE_S = 600.0
POLL_S = 1.0


@dataclass
class Point:
    """turns: taken so far. mib: resident memory then."""

    turns: int
    mib: float


@dataclass
class Soak:
    """What was seen. driver: one point a training step. server: of the env-server, one a poll."""

    run: Path
    driver: list[Point] = field(default_factory=list)
    server: list[Point] = field(default_factory=list)

    @property
    def turns(self) -> int:
        """Taken so far, in episodes that were learned from."""
        return self.driver[-1].turns if self.driver else 0

    def read(self) -> None:
        """Read metrics.jsonl anew; a last line that is being written is left out."""
        path = self.run / "metrics.jsonl"
        if not path.exists():
            return
        turns, self.driver = 0, []
        for line in path.read_text().splitlines(keepends=True):
            if line.endswith("\n"):
                row = json.loads(line)
                turns += round(row["rollout/turns"] * row["rollout/valid"])
                self.driver.append(Point(turns, row["driver/rss_gib"] * 1024))


def slope(points: Sequence[Point]) -> float:
    """MiB per 1000 turns, by least squares; 0 of fewer than two moments."""
    x = [point.turns / 1000 for point in points]
    mean_x, mean_y = (sum(v) / max(1, len(v)) for v in (x, [p.mib for p in points]))
    spread = sum((v - mean_x) ** 2 for v in x)
    moves = sum((v - mean_x) * (p.mib - mean_y) for v, p in zip(x, points, strict=True))
    return moves / spread if spread else 0.0


def settled(points: Sequence[Point]) -> list[Point]:
    """Those of the last half of the turns."""
    return [point for point in points if point.turns > points[-1].turns / 2]


def command(folder: Path, desktops: int, more: Sequence[str]) -> list[str]:
    """The run: episodes of several turns, few tokens, and a checkpoint now and then.

    The engine remembers so few pictures that there is no more room after some steps; with its own bound it would go on
    filling up, by a picture now and then, to the end of the soak.
    """
    return [
        sys.executable, "-m", "arpo.cli", "train", "config=configs/smoke_cpu.yaml", f"run.dir={folder}", "run.name=soak",
        "env.provider=simulated", f"env.desktops={desktops}", "env.screen=[640, 480]",
        "tasks.suite=simulated", "agent.max_pixels=12544", "rollout.max_staleness=1", "rollout.max_steps=8",
        "agent.history_screenshots=8", "engine.image_cache_gib=0.005",
        "agent.max_format_errors=8", "imitation.steps=60", "trainer.eval_before=false", "trainer.eval_after=false",
        "trainer.max_steps=1_000_000", "trainer.tasks_per_step=4", "rollout.group_size=4",
        "trainer.checkpoint_every=10", *more,
    ]  # fmt: skip


def soak(folder: Path, turns: int, desktops: int, more: Sequence[str]) -> Soak:
    """Train until so many turns were taken. Raises SystemExit when the run ends or stands still before."""
    seen = Soak(folder / "soak")
    with (folder / "output.log").open("wb") as log:
        driver = subprocess.Popen(
            command(folder, desktops, more),
            cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
        try:
            moved = time.monotonic()
            while seen.turns < turns:
                time.sleep(POLL_S)
                before = len(seen.driver)
                seen.read()
                if len(seen.driver) > before:
                    moved = time.monotonic()
                    servers = [p for p in children(driver.pid) if b"arpo.server.cli" in command_line(p)]
                    seen.server += [Point(seen.turns, mib(pid)) for pid in servers[:1]]
                if driver.poll() is not None or time.monotonic() > moved + PATIENCE_S:
                    raise SystemExit(f"the run has not gone on; see {folder / 'output.log'}")
            driver.send_signal(signal.SIGTERM)
            if driver.wait(120) != 75:
                raise SystemExit(f"SIGTERM: exit code {driver.returncode}; see {folder / 'output.log'}")
        finally:
            driver.kill()
            driver.wait()
    return seen


def mib(pid: int) -> float:
    """Resident memory of a process; 0 when it is gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def files(folder: Path) -> tuple[int, int]:
    """How many files are below a folder, and their bytes."""
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return len(sizes), sum(sizes)


def report(seen: Soak, bound: float) -> bool:
    """Print what became of memory and disk; whether memory grew no more than it may."""
    seen.read()
    if len(settled(seen.driver)) < 2:
        raise SystemExit(f"{seen.run}: too few steps to say anything")
    total = seen.turns
    print(f"{total} turns in {len(seen.driver)} steps; {cpu_name()}")
    print(f"\n{'turns':>8}{'driver MiB':>12}{'env-server MiB':>16}")
    print(f"{seen.driver[0].turns:8}{seen.driver[0].mib:12.0f}{_at(seen.server, 0, seen.driver[0].turns)}")
    for quarter in range(4):
        low, high = total * quarter / 4, total * (quarter + 1) / 4
        inside = [point.mib for point in seen.driver if low < point.turns <= high]
        driver = f"{median(inside):12.0f}" if inside else f"{'':12}"
        print(f"{high:8.0f}{driver}{_at(seen.server, low, high)}   median of quarter {quarter + 1}")
    grown = slope(settled(seen.driver))
    print(f"\ndriver: {grown:+.2f} MiB per 1000 turns over the last half (bound {bound:g})")
    if seen.server:
        print(f"env-server: {slope(settled(seen.server)):+.2f}")
    pictures, picture_bytes = files(seen.run / "screenshots")
    _, record_bytes = files(seen.run / "trajectories")
    everything = files(seen.run)[1] - files(seen.run / "checkpoints")[1]
    print(f"distinct screenshots: {pictures}, {pictures / total:.2f} a turn, {picture_bytes / 2**20:.1f} MiB")
    print(
        f"disk: {everything / total / 1024:.2f} KiB a turn without checkpoints, of which "
        f"{record_bytes / total / 1024:.2f} trajectories and {picture_bytes / total / 1024:.2f} screenshots"
    )
    return grown <= bound


def _at(points: Sequence[Point], low: float, high: float) -> str:
    inside = [point.mib for point in points if low < point.turns <= high]
    return f"{median(inside):16.0f}" if inside else f"{'':16}"


def main() -> int:
    """Soak, or read, and report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--turns", type=positive, default=16_000)
    parser.add_argument("--desktops", type=positive, default=3)
    parser.add_argument(
        "--bound", type=float, default=BOUND, help="MiB per 1000 turns that the driver may grow by"
    )
    parser.add_argument(
        "--folder", type=Path, help="where the run directory is made; default: a temporary one"
    )
    parser.add_argument("--read", type=Path, metavar="RUN", help="report on this run directory only")
    parser.add_argument("more", nargs="*", metavar="KEY=VALUE", help="further settings of the run")
    chosen = parser.parse_args()
    if chosen.read is not None:
        return 0 if report(Soak(chosen.read), chosen.bound) else 1
    folder = chosen.folder or Path(tempfile.mkdtemp(prefix="arpo-soak-"))
    folder.mkdir(parents=True, exist_ok=True)
    print(f"run directory {folder / 'soak'}", flush=True)
    return 0 if report(soak(folder, chosen.turns, chosen.desktops, chosen.more), chosen.bound) else 1


if __name__ == "__main__":
    sys.exit(main())
