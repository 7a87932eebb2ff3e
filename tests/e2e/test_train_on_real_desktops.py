"""The whole loop on real applications: one short training run, and one that is interrupted."""

from __future__ import annotations

import json
import shutil
import signal
import tempfile
from pathlib import Path

import pytest
from PIL import Image
from runs import alive, children, finish, lines, names, start, trajectories, wait_for

pytestmark = [pytest.mark.xvfb, pytest.mark.slow]
SHORT = (
    "config=configs/smoke_cpu.yaml",
    "trainer.max_steps=1",
    "trainer.tasks_per_step=2",
    "rollout.group_size=2",
    "imitation.steps=5",
    "trainer.eval_before=false",
    "trainer.eval_after=false",
)


def mounts() -> set[str]:
    return set(Path("/proc/self/mounts").read_text().splitlines())


def test_a_step_on_real_applications_shows_painted_windows_and_ends_with_a_checkpoint(tmp_path: Path) -> None:
    process = start(*SHORT, f"run.dir={tmp_path}", "run.name=real")
    output = finish(process)
    assert process.returncode == 0, output
    run = tmp_path / "real"
    summary = json.loads((run / "summary.json").read_text())
    assert summary["provider"] == "xvfb"
    assert summary["missing"] == []
    assert summary["warm_start"]["demonstrations"] == 5
    assert summary["checkpoint"]
    demonstrations = [t for t in trajectories(run) if t.group_id.startswith("demo/")]
    assert len(demonstrations) == 5
    assert {t.score for t in demonstrations} == {1.0}
    assert len({t.domain for t in demonstrations}) == 4
    for trajectory in demonstrations:
        for sha256 in {turn.observation for turn in trajectory.turns}:
            with Image.open(run / "screenshots" / sha256[:2] / f"{sha256}.png") as picture:
                assert picture.size == (1280, 720)
                colours = picture.convert("RGB").getcolors(maxcolors=1 << 20)
                assert colours is not None
                # a blank screen has a handful of colours, an application hundreds
                assert len(colours) > 100, f"{trajectory.task_id}: {sha256} looks blank"


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("launcher", ["local", "ray"])
def test_the_smoke_configuration_as_it_is(tmp_path: Path, launcher: str) -> None:
    process = start(
        "config=configs/smoke_cpu.yaml", f"launcher.kind={launcher}", f"run.dir={tmp_path}", "run.name=whole"
    )
    output = finish(process, 840)
    assert process.returncode == 0, output
    run = tmp_path / "whole"
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["provider"], summary["missing"]) == ("xvfb", [])
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["rollout/valid"] for row in rows] == [16, 16, 16]


def test_ctrl_c_leaves_no_process_mount_or_folder_behind(tmp_path: Path) -> None:
    before = mounts()
    # short: the sockets in it have paths of at most 108 bytes
    temporary = tempfile.mkdtemp()
    process = start(
        *SHORT, f"run.dir={tmp_path}", "run.name=stopped", "imitation.enabled=false", TMPDIR=temporary
    )
    run = tmp_path / "stopped"
    wait_for(lambda: lines(run / "trajectories" / "step-000001.jsonl"))
    wait_for(lambda: "Xvfb" in names(children(process.pid)))  # a desktop may just be made anew
    family = children(process.pid)
    process.send_signal(signal.SIGINT)
    output = finish(process, 60)
    assert process.returncode == 130, output
    assert "Traceback" not in output
    assert alive(family) == []
    assert mounts() == before
    left = [path.name for path in Path(temporary).iterdir()]
    shutil.rmtree(temporary)
    assert [name for name in left if not name.startswith("torchinductor")] == []  # torch's own cache
