"""A run of six steps in a process of its own, killed as the plan says: `killable.py FOLDER SEED KILLS`.

The process that imports torch only forks: each life of the run is a child. Prints what the run has become, as JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from test_checkpoint import Run, leaves

from arpo.checkpoints import folders
from arpo.learner import checkpoint
from arpo.learner.checkpointer import Checkpointer

STEPS = 6


def live(root: Path, say) -> None:
    """From the newest checkpoint to the end. say: told when a step and when a save begins."""
    run, rows, done = Run(), [], 0
    checkpoint.tidy(root)
    newest = checkpoint.newest_sound(root, lambda damaged, why: sys.exit(f"{damaged}: {why}"))
    for number in range(1, STEPS + 1):
        run.rows(number)  # pictures of the steps before, which lie on a disk in a real run
    if newest is not None:
        rows, done = run.load(newest)["rows"], newest.step
    saver = Checkpointer(root, keep=2)
    begin_save = run.learner.begin_save

    def saving(folder):
        say("saving")
        return begin_save(folder)

    run.learner.begin_save = saving
    for step in range(done + 1, STEPS + 1):
        say("step")
        rows.append({key: value for key, value in run.step(step).items() if "seconds" not in key})
        run.begin(saver, step, {"rows": rows})
    saver.finish()
    say("end")


def born(root: Path) -> tuple[int, int]:
    """A child that lives the run: its process id, and where it says what it does."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        live(root, lambda word: os.write(writing, f"{word}\n".encode()))
        os._exit(0)
    os.close(writing)
    return pid, reading


def main(root: Path, seed: int, kills: int) -> None:
    rng = random.Random(seed)
    # the second kind lets at most one step pass, so that the run is not at its end before all have struck
    plan = ["step", "saving"] * (kills // 2)
    rng.shuffle(plan)
    in_a_save = 0
    longest = {"step": 0.6, "saving": 0.3}
    for number, moment in enumerate(plan):
        pid, reading = born(root)
        with os.fdopen(reading) as said:
            for word in said:
                if word.strip() == moment:
                    break
            # the first in a save is certainly in it; for the others it is chance
            delay = 0.0 if number == plan.index("saving") else rng.uniform(0, longest[moment])
            time.sleep(delay)
            os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
        assert os.WIFSIGNALED(status), "it ended before it was killed"
        in_a_save += any(root.glob(".step-*"))
    pid, reading = born(root)
    with os.fdopen(reading) as said:
        assert said.read().endswith("end\n")
    assert os.waitpid(pid, 0)[1] == 0

    newest = folders.latest(root)
    pid = os.fork()
    if pid:
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    run = Run()  # in a child: torch must not compute in the process that forks
    state = run.load(newest)
    weights = hashlib.sha256()
    for leaf in leaves(run.learner.state_dict()):
        weights.update(leaf.contiguous().view(-1).numpy().tobytes())
    replay = {
        str(path.relative_to(newest.path)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((newest.path / checkpoint.REPLAY).rglob("*"))
        if path.is_file()
    }
    outcome = {"step": newest.step, "rows": state["rows"], "weights": weights.hexdigest(), "replay": replay}
    print(json.dumps({"in_a_save": in_a_save, "outcome": outcome}), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
