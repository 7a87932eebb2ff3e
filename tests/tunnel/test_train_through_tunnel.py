"""A run whose desktops are behind `arpo tunnel`: a cut line and a killed sshd cost it time, and nothing else."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from run_kit import far_desktops, sent
from tunnel_kit import needs_sshd

pytestmark = [needs_sshd, pytest.mark.timeout(900)]


def lose_both(far, process, *, cut_s: float) -> None:
    """Cut the line amid episodes, then, later, kill sshd."""
    far.in_the_middle(process, steps=2)
    far.wire.cut()
    time.sleep(cut_s)
    far.wire.mend()
    far.up.wait_for("ready: ", 90, times=2)
    far.in_the_middle(process, steps=6)
    far.gate.kill()
    time.sleep(2)
    far.gate.start()
    far.up.wait_for("ready: ", 90, times=3)


def assert_nothing_was_lost(far, records) -> None:
    """As many steps were applied as all episodes have sent, and none that had begun was broken off: what failed is the
    beginning of those that would have begun amid the outage.
    """
    assert {row["code"] for row in records.faults} <= {"backend_lost"}
    assert not [
        trajectory.turns for trajectory in records.kept if trajectory.problem is not None and trajectory.turns
    ]
    assert sum(row["rollout/lost"] for row in records.metrics) == 0
    assert far.applied()["steps"] == sent(far.run)


@pytest.mark.slow
def test_a_cut_line_and_a_killed_sshd_cost_no_step_and_repeat_none(tmp_path: Path) -> None:
    with far_desktops(tmp_path, "simulated") as far:
        process = far.train()
        lose_both(far, process, cut_s=12)
        output, records = far.finished(process, 300)
        assert_nothing_was_lost(far, records)
        assert "no answer from the env-server at" in output
        assert "answers again after" in output


@pytest.mark.long
def test_sessions_that_an_outage_has_ended_are_run_again_and_cost_no_retry(tmp_path: Path) -> None:
    with far_desktops(tmp_path, "simulated") as far:
        process = far.train("env.idle_timeout_s=4")
        far.in_the_middle(process, steps=2)
        far.wire.cut()
        time.sleep(14)
        far.wire.mend()
        _, records = far.finished(process, 300)
        assert {row["code"] for row in records.faults} <= {"lease_lost", "backend_lost"}
        assert sum(row["rollout/lost"] for row in records.metrics) == 0


@pytest.mark.long
@pytest.mark.xvfb
def test_a_minute_without_a_line_on_real_desktops(tmp_path: Path) -> None:
    with far_desktops(tmp_path, "xvfb") as far:
        process = far.train()
        lose_both(far, process, cut_s=60)
        _, records = far.finished(process, 600)
        assert_nothing_was_lost(far, records)
