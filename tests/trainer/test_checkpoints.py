"""Which of a run's checkpoints is meant by `latest`, `best` and `step-N`, and what happens to damaged ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from arpo.checkpoints import manifest
from arpo.learner.checkpoint import CheckpointError
from arpo.protocol.problems import ConfigError
from arpo.trainer.checkpoints import choose, evaluated, newest_to_resume


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with four checkpoints; 2 and 3 were evaluated best."""
    for step in (1, 2, 3, 4):
        folder = tmp_path / "checkpoints" / f"step-{step:06d}"
        folder.mkdir(parents=True)
        (folder / "data").write_text(f"{step}")
        manifest.seal(folder)
    scores = {
        "before": (0, 0.9),
        "step-000002": (2, 0.5),
        "step-000003": (3, 0.5),
        "after": (4, None),
        "mine": (1, 1),
    }
    (tmp_path / "evaluations").mkdir()
    for name, (step, success) in scores.items():
        (tmp_path / "evaluations" / f"{name}.json").write_text(json.dumps({"step": step, "success": success}))
    return tmp_path


def damage(run: Path, step: int) -> None:
    (run / "checkpoints" / f"step-{step:06d}" / "data").write_text("x")


def test_the_evaluations_of_training_count_and_no_others(run: Path) -> None:
    assert evaluated(run) == {0: 0.9, 2: 0.5, 3: 0.5}
    assert evaluated(run / "elsewhere") == {}


@pytest.mark.parametrize(("which", "step"), [("latest", 4), ("best", 3), ("step-2", 2), ("step-000001", 1)])
def test_a_checkpoint_is_called_by_name(run: Path, which: str, step: int) -> None:
    chosen = choose(run, which, pytest.fail)
    assert chosen is not None
    assert chosen.step == step


@pytest.mark.parametrize("which", ["step-7", "newest", "step-x"])
def test_a_name_that_is_not_there_is_refused_with_those_that_are(run: Path, which: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"has no checkpoint {which}; fix: .*latest, step-000001, step-000002"
    ):
        choose(run, which, pytest.fail)


def test_there_is_no_best_without_evaluations(run: Path, tmp_path: Path) -> None:
    for path in (run / "evaluations").iterdir():
        path.unlink()
    with pytest.raises(ConfigError, match=r"no checkpoint of .* was evaluated"):
        choose(run, "best", pytest.fail)
    assert choose(tmp_path / "empty", "latest", pytest.fail) is None


def test_latest_passes_over_damaged_ones_aloud_and_a_name_does_not(run: Path) -> None:
    damage(run, 4)
    damage(run, 3)
    said: list[str] = []
    chosen = choose(run, "latest", said.append)
    assert chosen is not None
    assert chosen.step == 2
    assert [
        f"step-00000{step} is damaged (data is not as it was written)" in line
        for step, line in zip((4, 3), said, strict=True)
    ] == [True, True]
    with pytest.raises(CheckpointError, match="step-000003 is damaged: data is not"):
        choose(run, "best", pytest.fail)


def test_what_is_resumed_from_is_sound_and_damaged_ones_go_aside(run: Path) -> None:
    damage(run, 4)
    damage(run, 3)
    said: list[str] = []
    for _ in range(2):  # the second time as after a run that saved damaged ones of the same steps again
        chosen, damaged = newest_to_resume(run, said.append)
        assert chosen is not None
        assert chosen.step == 2
    assert damaged == 0
    assert len(said) == 2
    there = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert there == ["damaged-step-000003", "damaged-step-000004", "step-000001", "step-000002"]

    damage(run, 1)
    damage(run, 2)
    with pytest.raises(CheckpointError, match="every checkpoint"):
        newest_to_resume(run, said.append)
    assert (run / "checkpoints" / "step-000002").exists(), (
        "nothing goes aside when there is nothing to go on from"
    )
