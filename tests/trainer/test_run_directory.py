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
from arpo.evaluation.result import EvaluationResult, TaskResult
from arpo.protocol.problems import ConfigError
from arpo.trainer.run_directory import RunDirectory
from arpo.trainer.version import CodeVersion, Git


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


def test_every_process_that_works_on_a_run_is_an_attempt(tmp_path, monkeypatch) -> None:
    for process, expected in (("a", 1), ("a", 1), ("b", 2), ("c", 3)):
        monkeypatch.setattr("arpo.trainer.run_directory._PROCESS", process)
        with RunDirectory(config(tmp_path)) as run:
            assert run.begin_attempt(expected * 10) == run.attempt == expected
    with (tmp_path / "r" / "attempts.jsonl").open("a") as file:
        file.write('{"attempt": 4, "st')  # killed while it wrote
    monkeypatch.setattr("arpo.trainer.run_directory._PROCESS", "d")
    with RunDirectory(config(tmp_path)) as run:
        assert run.begin_attempt(40) == 4
    rows = [json.loads(line) for line in (tmp_path / "r" / "attempts.jsonl").read_text().splitlines()]
    assert [(row["attempt"], row["step"]) for row in rows] == [(1, 10), (2, 20), (3, 30), (4, 40)]


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


def test_another_code_version_is_named_with_the_step_after_which_it_came(tmp_path) -> None:
    old = CodeVersion(
        arpo="1", git=Git(commit="a", dirty=False), python="3", packages={}, platform="p", gpus=[]
    )
    new = old.model_copy(update={"git": Git(commit="b", dirty=True), "packages": {"ray": "2"}})
    with RunDirectory(config(tmp_path)) as run:
        assert run.keep_version(old) == run.keep_version(old, 3) == []
        changes = [
            "git.commit: a → b",
            "git.dirty: False → True",
            "packages: {} → None",
            "packages.ray: None → 2",
        ]
        assert run.keep_version(new, 4) == changes
        assert run.version_changes() == [f"after step 4: {change}" for change in changes]
        assert run.config_changes() == []
        assert CodeVersion.model_validate_json((run.root / "version.json").read_text()) == new


def test_what_stands_at_a_step_is_its_metrics_and_its_evaluation(tmp_path) -> None:
    result = EvaluationResult(
        policy_version=1, tasks=[TaskResult(task_id="t", domain="d", scores=[1.0, 0.0], lost=1)], faults={}
    )
    evaluated = {
        "evaluation/success": 0.5, "evaluation/success/d": 0.5, "evaluation/episodes": 2, "evaluation/lost": 1,
    }  # fmt: skip
    with RunDirectory(config(tmp_path)) as run:
        assert run.standing(0) == {}
        run.write("evaluations/before.json", {"step": 0, **result.record()})
        for step in (1, 2):
            run.metrics({"step": step, "x": 0.5})
        run.write("evaluations/step-000002.json", {"step": 2, **result.record()})
        assert run.standing(0) == evaluated
        assert run.standing(1) == {"step": 1, "x": 0.5}
        assert run.standing(2) == {"step": 2, "x": 0.5, **evaluated}


def test_evaluations_of_later_steps_are_forgotten_with_their_episodes(tmp_path) -> None:
    with RunDirectory(config(tmp_path)) as run:
        for label, step in (("before", 0), ("step-000001", 1), ("step-000002", 2), ("after", 3), ("mine", 3)):
            identity = Identity.of(
                config(tmp_path), [], label=label, step=step, policy="p", policy_version=step
            )
            open_record(run.evaluation_record(label), identity, 1, run.screenshots)
        run.forget_after(1)
        assert names(run.root / "evaluations") == ["before", "mine", "step-000001"]
