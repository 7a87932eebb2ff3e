"""Trackers go on where the run goes on, and neither stop it nor hold it up."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tracker_kit import scalars

from arpo.config.load import load_config
from arpo.trainer.doctor import preflight
from arpo.trainer.trackers import Trackers, TrackerStart, lanes
from arpo.trainer.trackers.lanes import opener

CONFIG = load_config(None, []).model_dump(mode="json")


def start(root: Path, step: int = 0, **standing: float) -> TrackerStart:
    return TrackerStart(root, "mine", CONFIG, step, standing)


def track(name: str, begin: TrackerStart, *rows: tuple[int, dict[str, float]]) -> list[str]:
    """One start of a run with one tracker; returns what was said."""
    said: list[str] = []
    trackers = Trackers({name: opener(name, begin)}, said.append)
    for row in rows:
        trackers.log(*row)
    trackers.close("finished")
    return said


def test_tensorboard_forgets_what_a_resumed_run_makes_again_and_keeps_the_step_it_goes_on_from(
    tmp_path,
) -> None:
    assert track("tensorboard", start(tmp_path), *((n, {"score": float(n)}) for n in (1, 2, 3))) == []
    # killed; step 2 had been evaluated after it was saved, and evaluated again at the end
    assert track("tensorboard", start(tmp_path, 2), (2, {"evaluation/success": 0.5})) == []
    again = start(tmp_path, 2, score=2.0, **{"evaluation/success": 0.5})
    assert track("tensorboard", again, (3, {"score": 30.0}), (3, {"evaluation/success": 1.0})) == []
    assert scalars(tmp_path) == {
        "score": [(1, 1.0), (2, 2.0), (3, 30.0)],
        "evaluation/success": [(2, 0.5), (3, 1.0)],
    }


def test_a_run_that_begins_anew_in_its_folder_begins_anew_in_tensorboard(tmp_path) -> None:
    track("tensorboard", start(tmp_path), (0, {"evaluation/success": 0.0}), (1, {"score": 1.0}))
    track("tensorboard", start(tmp_path), (1, {"score": 10.0}))
    assert scalars(tmp_path) == {"score": [(1, 10.0)], "evaluation/success": []}


class Script:
    """A tracker of somebody else: does at every log what it is told."""

    def __init__(self, do: Callable[[], object]) -> None:
        self._do = do
        self.logged = 0

    def log(self, step: int, metrics: object) -> None:
        self.logged += 1
        self._do()

    def close(self, state: str) -> None:
        pass


def test_a_tracker_that_fails_is_named_once_without_a_secret_and_not_used_again(monkeypatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "s3cr3t-value")

    def fail() -> None:
        raise OSError("http://me:pass@tracker refused the key s3cr3t-value\nand more")

    said: list[str] = []
    failing, sound = Script(fail), Script(lambda: None)
    trackers = Trackers({"bad": lambda: failing, "good": lambda: sound}, said.append)
    for step in range(5):
        trackers.log(step, {"x": 1.0})
    trackers.close("finished")
    assert said == [
        "warning: bad does not track this run any more: OSError: http://***@tracker refused the key ***"
    ]
    assert (failing.logged, sound.logged) == (1, 5)


def test_a_tracker_that_cannot_be_opened_is_named(tmp_path) -> None:
    (tmp_path / "tensorboard").write_text("no folder")
    (line,) = track("tensorboard", start(tmp_path), (1, {"score": 1.0}))
    assert line.startswith("warning: tensorboard does not track this run any more: ")


def test_a_tracker_that_hangs_makes_nobody_wait_and_is_given_up(monkeypatch) -> None:
    monkeypatch.setattr(lanes, "_CLOSING_S", {"finished": 0.2, "stopped": 0.1, "failed": 0.1})
    free = threading.Event()
    said: list[str] = []
    trackers = Trackers({"slow": lambda: Script(free.wait)}, said.append)
    began = time.monotonic()
    for step in range(10):
        trackers.log(step, {"x": 1.0})
    trackers.close("finished")
    assert time.monotonic() - began < 2
    assert said == ["warning: slow does not track this run any more: not done at the end of the run"]
    trackers = Trackers({"slow": lambda: Script(free.wait)}, said.append)
    for step in range(300):
        trackers.log(step, {"x": 1.0})
    assert said[1:] == ["warning: slow does not track this run any more: 256 rows behind"]
    free.set()


def test_wandb_keeps_an_offline_run_under_one_id(tmp_path, monkeypatch) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed: pip install 'arpo[wandb]'")
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    assert track("wandb", start(tmp_path), (1, {"score": 0.25})) == []
    assert track("wandb", start(tmp_path, 1, score=0.25), (2, {"score": 0.5})) == []
    run_id = (tmp_path / "wandb" / "run_id").read_text().strip()
    files = sorted((tmp_path / "wandb").glob(f"offline-run-*-{run_id}/run-{run_id}.wandb"))
    assert len(files) == 2, "one file for every start, to be uploaded into the same run"
    assert [b"score" in file.read_bytes() for file in files] == [True, True]


def test_mlflow_goes_on_in_the_same_run_of_its_own_database(tmp_path, monkeypatch) -> None:
    pytest.importorskip("mlflow", reason="mlflow is not installed: pip install 'arpo[mlflow]'")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert track("mlflow", start(tmp_path), (1, {"rollout/score": 0.25})) == []
    assert track("mlflow", start(tmp_path, 1), (2, {"rollout/score": 0.5})) == []
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow/mlflow.db")
    run_id = (tmp_path / "mlflow" / "run_id").read_text().strip()
    history = client.get_metric_history(run_id, "rollout/score")
    assert [(metric.step, metric.value) for metric in history] == [(1, 0.25), (2, 0.5)]
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["trainer.max_steps"] == "100"


def test_swanlab_keeps_an_offline_run_under_one_id(tmp_path, monkeypatch) -> None:
    pytest.importorskip("swanlab", reason="swanlab is not installed: pip install 'arpo[swanlab]'")
    for name in ("SWANLAB_API_KEY", "SWANLAB_MODE"):
        monkeypatch.delenv(name, raising=False)
    assert track("swanlab", start(tmp_path), (1, {"score": 0.25})) == []
    time.sleep(1.1)  # its folders are named by the second
    assert track("swanlab", start(tmp_path, 1), (2, {"score": 0.5})) == []
    run_id = (tmp_path / "swanlab" / "run_id").read_text().strip()
    assert len(list((tmp_path / "swanlab").glob(f"run-*-{run_id}"))) == 2


def test_the_doctor_names_the_package_that_a_tracker_needs(monkeypatch) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "wandb" else find(name, *rest)
    )
    config = load_config(None, ["run.trackers=[tensorboard, wandb]", "env.provider=simulated"])
    (failed,) = [c for c in preflight(config, hardware=True) if c.name == "trackers"]
    assert not failed.ok
    assert re.search(r"run\.trackers has wandb, .*fix: pip install 'arpo\[wandb\]'", failed.detail)
