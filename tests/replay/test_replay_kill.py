"""SIGKILL at any moment: what was published loads, what was imported is whole, and nothing that is needed is removed."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from replay_kit import Run, picture, sha

from arpo.replay.dataset import Dataset
from arpo.replay.exchange import export_run, import_run
from arpo.replay.listing import StoredRun

HERE = Path(__file__).parent

# Publishes by a rename and prunes, as training does; every step stores, evicts, and tidies up.
TRAINING = f"""
import random, shutil, sys
from pathlib import Path
sys.path.insert(0, {str(HERE)!r})
from replay_kit import Run, close
root, first = Path(sys.argv[1]), int(sys.argv[2])
run = Run(root)
buffer = run.buffer(capacity=2, max_trajectories=5)
newest = sorted(run.checkpoints.glob("step-*"))
if newest:
    buffer.load(newest[-1] / "replay")
for hidden in run.checkpoints.glob(".*"):
    shutil.rmtree(hidden)
print("on", flush=True)
for step in range(first, 10**6):
    for task in "abcd":
        close(buffer, [1.0, 0.0, 1.0], task=task, version=step, started_at=float(step))
        close(buffer, [0.0, 0.0], task=task)
    scratch = run.checkpoints / f".step-{{step:06d}}.x"
    shutil.rmtree(scratch, ignore_errors=True)
    (scratch / "replay").mkdir(parents=True)
    buffer.save(scratch / "replay")
    (scratch / "manifest.json").write_text('{{"files": {{}}}}')
    scratch.rename(run.checkpoints / f"step-{{step:06d}}")
    for old in sorted(run.checkpoints.glob("step-*"))[:-2]:
        shutil.rmtree(old.rename(old.with_name("." + old.name)))
    run.folder.collect_garbage(buffer.needed_rows(), run.checkpoints)
"""

IMPORTING = """
import sys
from pathlib import Path
from arpo.replay.dataset import Dataset
from arpo.replay.exchange import import_run
print("on", flush=True)
import_run(Path(sys.argv[1]), Dataset(Path(sys.argv[2])))
"""


def killed_when(ripe: Callable[[float], bool], script: str, *arguments: str) -> None:
    """Run a script and kill it once the condition holds; it is given the seconds since the script got going."""
    process = subprocess.Popen(
        [sys.executable, "-c", script, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == b"on\n", process.stderr.read().decode()
    started = time.monotonic()
    while not ripe(time.monotonic() - started) and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_training_killed_at_random_points_goes_on_with_every_row_of_every_checkpoint(tmp_path) -> None:
    run, rng, steps = Run(tmp_path), random.Random(4), []
    for _ in range(10):
        first, moment = str(steps[-1] + 1 if steps else 1), rng.uniform(0.02, 0.4)
        killed_when(lambda seconds, moment=moment: seconds > moment, TRAINING, str(tmp_path), first)
        published = sorted(run.checkpoints.glob("step-*"))
        steps = [int(path.name[5:]) for path in published] or steps
        for path in published:
            buffer = run.buffer(capacity=2, max_trajectories=5)
            buffer.load(path / "replay")
            assert len(buffer.stored) == 5
            for entry in buffer.stored:
                run.folder.rows.get(entry.sha256)
    assert steps[-1] > 10, "it got nowhere: the test shows nothing"
    # what the killed ones left goes with the next tidying up
    run.folder.collect_garbage(set(), run.checkpoints)
    assert list(run.folder.rows.root.glob("*/.*")) == []
    # five of each checkpoint; a kill between publishing one and removing the oldest leaves one more than is kept
    assert len(run.rows()) <= 5 * len(published)


def test_a_killed_import_leaves_no_entry_without_its_row_and_pictures_and_is_completed_by_the_next(
    tmp_path,
) -> None:
    source, rng = Run(tmp_path / "source"), random.Random(8)
    buffer = source.buffer(*(f"e{n}" for n in range(60)), capacity=60)
    source.publish(buffer, 1)
    export_run(StoredRun(source.root), tmp_path / "data")
    dataset, partial = Dataset(tmp_path / "data"), 0
    for attempt in range(8):
        target, wanted = Run(tmp_path / f"target-{attempt}"), rng.randint(0, 40)

        # right after a row has appeared, or right after an entry has
        pattern = "rows/*/*.gz" if attempt % 2 else "inbox/*.json"

        def ripe(
            seconds: float, folder: Path = target.folder.root, pattern: str = pattern, wanted: int = wanted
        ) -> bool:
            return sum(1 for _ in folder.glob(pattern)) > wanted

        killed_when(ripe, IMPORTING, str(target.root), str(dataset.root))
        entries = target.folder.inbox()
        partial += 0 < len(entries) < 60
        for entry in entries:
            row = target.folder.rows.get(entry.stored.sha256)
            assert target.screenshots.get(row.images[0].sha256) == picture("p")
            assert target.screenshots.get(sha("last")) == picture("last")
        result = import_run(target.root, dataset)
        assert (result.added, result.present) == (60 - len(entries), len(entries))
        assert len(target.folder.inbox()) == 60
    assert partial, "no kill hit the middle of an import: the test shows nothing"
