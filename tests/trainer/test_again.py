from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from arpo.checkpoints.manifest import seal
from arpo.config.load import load_config
from arpo.config.model import Config
from arpo.protocol.problems import ArpoError
from arpo.trainer.again import replacing_lost_ranks
from arpo.trainer.launch import LearnerLost
from arpo.trainer.stop import Stop


def configured(folder: Path, limit: int) -> Config:
    return load_config(None, [f"run.dir={folder}", "run.name=run", f"launcher.max_restarts={limit}"])


def outcome(config: Config, *results: object, saves: bool = False) -> tuple[object, list[str], int]:
    """What comes of attempts that end like this, in turn: the result or error, what was said, how many were made."""
    said: list[str] = []
    made: list[int] = []

    async def attempt(restarts: int) -> object:
        assert restarts == len(made)
        made.append(restarts)
        if saves:
            checkpoint = config.run.dir / "run" / "checkpoints" / f"step-{len(made):06d}"
            checkpoint.mkdir(parents=True)
            seal(checkpoint)
        result = results[len(made) - 1]
        if isinstance(result, BaseException):
            raise result
        return result

    try:
        result = asyncio.run(replacing_lost_ranks(attempt, config, Stop(1), said.append))
    except (ArpoError, BaseExceptionGroup) as error:
        result = error
    return result, said, len(made)


def test_a_lost_rank_is_replaced_and_said(tmp_path: Path) -> None:
    lost = LearnerLost("learner rank 1 ended")
    grouped = ExceptionGroup("tasks", [LearnerLost("learner rank 0 ended")])
    result, said, made = outcome(configured(tmp_path, 2), lost, grouped, "done")
    assert (result, made) == ("done", 3)
    assert said == [
        "learner rank 1 ended; going on from the beginning",
        "learner rank 0 ended; going on from the beginning",
    ]


def test_it_is_given_up_when_nothing_comes_of_it(tmp_path: Path) -> None:
    result, _, made = outcome(configured(tmp_path, 2), *[LearnerLost("learner rank 1 ended")] * 9)
    assert made == 3
    assert isinstance(result, LearnerLost)
    assert "given up after launcher.max_restarts=2 in a row; the same command goes on" in str(result)


def test_a_new_checkpoint_in_between_starts_the_count_again(tmp_path: Path) -> None:
    lost = [LearnerLost("learner rank 1 ended")] * 5
    result, _, made = outcome(configured(tmp_path, 1), *lost, "done", saves=True)
    assert (result, made) == ("done", 6)


@pytest.mark.parametrize(
    "error", [ArpoError("no"), ExceptionGroup("tasks", [LearnerLost("lost"), ArpoError("no")])]
)
def test_other_errors_are_none_of_its_business(tmp_path: Path, error: Exception) -> None:
    result, _, made = outcome(configured(tmp_path, 2), error)
    assert (result, made) == (error, 1)
