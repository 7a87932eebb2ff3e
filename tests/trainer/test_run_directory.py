"""One process owns a run directory, and what it holds is what an uninterrupted run would have left."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from arpo.config.load import load_config
from arpo.config.model import Config
from arpo.evaluation.identity import Identity
from arpo.evaluation.record import open_record
from arpo.protocol.problems import ConfigError
from arpo.trainer.run_directory import RunDirectory


def config(folder: Path, *overrides: str) -> Config:
    return load_config(None, [f"run.dir={folder}", "run.name=r", *overrides])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_second_process_is_refused_by_name_and_may_have_it_afterwards(tmp_path) -> None:
    with (
        RunDirectory(config(tmp_path)),
        pytest.raises(ConfigError, match=rf"in use by process {os.getpid()}; fix"),
    ):
        RunDirectory(config(tmp_path))
    with RunDirectory(config(tmp_path)):
        assert (tmp_path / "r" / ".lock").read_text() == f"{os.getpid()}\n"


def test_a_folder_that_cannot_be_made_is_bad_input(tmp_path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"file/r cannot be written: Not a directory; fix: set run\.dir"):
        RunDirectory(config(tmp_path / "file"))


def test_what_differs_from_the_last_start_is_named(tmp_path) -> None:
    with RunDirectory(config(tmp_path)) as run:
        assert run.keep_config(config(tmp_path)) == []
        assert run.keep_config(config(tmp_path)) == []
        changed = config(tmp_path, "trainer.max_steps=7", "learner.lr=0.5")
        assert run.keep_config(changed) == ["learner.lr: 1e-06 → 0.5", "trainer.max_steps: 100 → 7"]
        assert load_config(run.root / "config.yaml") == changed
        (run.root / "config.yaml").write_text("run: [")
        with pytest.raises(ConfigError, match="fix: remove it"):
            run.keep_config(changed)


def test_going_on_from_a_step_forgets_what_will_be_made_again(tmp_path) -> None:
    with RunDirectory(config(tmp_path)) as run:
        for step in (1, 2, 3):
            run.metrics({"step": step, "x": 0.5})
            run.write(f"evaluations/step-{step:06d}.json", {})
        with (run.root / "metrics.jsonl").open("a") as file:
            file.write('{"step": 4, "x"')  # killed while it wrote
        for name in ("before", "after", "mine"):
            run.write(f"evaluations/{name}.json", {})
        run.write("summary.json", {})
        log = run.root / "trajectories"
        log.mkdir()
        for step in range(4):
            (log / f"step-{step:06d}.jsonl").write_text("{}\n")
        run.forget_after(1)
        assert [
            json.loads(line)["step"] for line in (run.root / "metrics.jsonl").read_text().splitlines()
        ] == [1]
        assert names(run.root / "evaluations") == ["before.json", "mine.json", "step-000001.json"]
        assert not (run.root / "summary.json").exists()
        kept, aside = ["step-000000.jsonl", "step-000001.jsonl"], [2, 3]
        assert names(log) == kept + [f"step-{step:06d}.abandoned-1.jsonl" for step in aside]

        (log / "step-000002.jsonl").write_text("again\n")
        run.forget_after(1)
        assert (log / "step-000002.abandoned-1.jsonl").read_text() == "{}\n"
        assert (log / "step-000002.abandoned-2.jsonl").read_text() == "again\n"

        run.forget_after(-1)
        assert (run.root / "metrics.jsonl").read_text() == ""
        assert not (log / "step-000000.jsonl").exists()


def test_evaluations_of_later_steps_are_forgotten_with_their_episodes(tmp_path) -> None:
    with RunDirectory(config(tmp_path)) as run:
        for label, step in (("before", 0), ("step-000001", 1), ("step-000002", 2), ("after", 3), ("mine", 3)):
            identity = Identity.of(
                config(tmp_path), [], label=label, step=step, policy="p", policy_version=step
            )
            open_record(run.evaluation_record(label), identity, 1, run.screenshots)
        run.forget_after(1)
        assert names(run.root / "evaluations") == ["before", "mine", "step-000001"]
