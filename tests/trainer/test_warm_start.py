"""Only a demonstration that scored 1.0 is imitated; faults on the way are seen, and do not spoil it."""

from __future__ import annotations

import asyncio
import hashlib
import json
from pathlib import Path

import pytest
from rollout_kit import PROFILE, Letters, Says, rules, runner, scripted
from scripted_desktop import SCREEN, Script, env_server

from arpo.protocol.problems import ArpoError, ConfigError, ProblemCode, ProblemError
from arpo.replay.dataset import Dataset, write_dataset
from arpo.replay.index import Stored
from arpo.rollout.collect import Collector
from arpo.tasks.sets import Suite, load_suite
from arpo.trainer.warm_start import read_demonstrations, record_demonstrations
from arpo.trajectory import Trajectory
from arpo.trajectory.store import ScreenshotStore

BROKEN = ProblemError(ProblemCode.EVALUATOR_FAILED, "no such sheet")
DEMONSTRATION = {
    "screen": list(SCREEN),
    "turns": [
        {"thought": "There.", "actions": [{"kind": "click", "x": 30, "y": 40}]},
        {"thought": "Done.", "actions": [{"kind": "finished"}]},
    ],
}


def suite(folder: Path, *demonstrated: str) -> Suite:
    """Tasks a and b, and demonstrations of some."""
    for kind in ("examples", "demos"):
        (folder / "suite" / kind / "os").mkdir(parents=True)
    for name in ("a", "b"):
        task = {"id": name, "instruction": f"do {name}", "evaluator": {"func": "infeasible"}}
        (folder / "suite" / "examples" / "os" / f"{name}.json").write_text(json.dumps(task))
    for name in demonstrated:
        (folder / "suite" / "demos" / "os" / f"{name}.json").write_text(json.dumps(DEMONSTRATION))
    return load_suite(folder / "suite")


def record(
    folder: Path, suite: Suite, script: Script, retries: int = 1
) -> tuple[list[Trajectory], list[Trajectory]]:
    """The demonstrations and every episode that ended."""
    ended: list[Trajectory] = []

    async def main() -> list[Trajectory] | ArpoError:
        async with env_server(folder, script, capacity=2) as server:
            await server.client.wait_ready(5)
            collector = Collector(
                runner=runner(server, folder),
                engine=Says(),
                rules=rules(),
                concurrency=2,
                on_trajectory=ended.append,
                after_fault=lambda: server.client.wait_ready(5),
            )
            try:
                return await record_demonstrations(
                    suite, suite.tasks(), collector, Letters(), PROFILE, screen=SCREEN, max_retries=retries
                )
            except ArpoError as error:  # a server in this process would wrap it in groups of its own
                return error

    recorded = asyncio.run(main())
    if isinstance(recorded, ArpoError):
        raise recorded
    return recorded, ended


def test_demonstrations_are_episodes_in_the_order_of_the_tasks(tmp_path) -> None:
    script = Script()
    recorded, ended = record(tmp_path, suite(tmp_path, "a", "b"), script)
    assert [t.task_id for t in recorded] == ["a", "b"]
    assert {t.score for t in recorded} == {1.0}
    assert all([t.format_error for t in trajectory.turns] == [None, None] for trajectory in recorded)
    assert len(script.executed) == 4
    assert len(ended) == 2
    assert {t.sampler for t in [*recorded, *ended]} == {"script"}


def test_a_fault_is_seen_and_the_demonstration_recorded_again(tmp_path) -> None:
    recorded, ended = record(tmp_path, suite(tmp_path, "a", "b"), Script(evaluate=scripted([BROKEN, 1.0])))
    assert all(t.valid and t.score == 1.0 for t in recorded)
    assert sorted(t.problem is None for t in ended) == [False, True, True]


def test_a_demonstration_that_cannot_be_recorded_says_why(tmp_path) -> None:
    with pytest.raises(ArpoError, match=r"demonstration of os/a could not be recorded: no such sheet"):
        record(tmp_path, suite(tmp_path, "a", "b"), Script(evaluate=lambda desktop: BROKEN))


def test_a_demonstration_that_does_not_solve_its_task_is_not_imitated(tmp_path) -> None:
    with pytest.raises(ArpoError, match=r"os/a scored 0\.5, not 1\.0"):
        record(tmp_path, suite(tmp_path, "a", "b"), Script(evaluate=lambda desktop: 0.5))


def test_a_task_without_a_demonstration_is_bad_input_before_any_desktop_is_used(tmp_path) -> None:
    script = Script()
    with pytest.raises(ConfigError, match=r"os/b has no demonstration to imitate; fix: add demos/os/b\.json"):
        record(tmp_path, suite(tmp_path, "a"), script)
    assert script.resets == []


def test_demonstrations_may_come_from_a_data_set_of_the_policys_tokenizer(tmp_path) -> None:
    recorded, _ = record(tmp_path, suite(tmp_path, "a", "b"), Script())
    documents = [trajectory.model_dump_json().encode() for trajectory in recorded]
    items = [
        (Stored.of_rollout(trajectory, hashlib.sha256(document).hexdigest(), step=0), document)
        for trajectory, document in zip(recorded, documents, strict=True)
    ]
    write_dataset(tmp_path / "data", items, ScreenshotStore(tmp_path / "screenshots"), "mine")
    dataset = Dataset(tmp_path / "data")
    assert read_demonstrations(dataset, tokenizer="mine", success_above=0.1) == recorded
    for image in recorded[0].images:
        assert dataset.screenshots.get(image.sha256)
    with pytest.raises(
        ConfigError, match=r"imitation\.dataset=.*data has token ids of another tokenizer .*; fix: use"
    ):
        read_demonstrations(dataset, tokenizer="another", success_above=0.1)
