"""Learner ranks as Ray actors: the same steps as in one process."""

import json
import os
import socket
from pathlib import Path

import pytest
from rank_program import learner_for, run
from test_ranks import STEPS, assert_same_run, here, results

ray = pytest.importorskip("ray", reason="ray is not installed; fix: pip install 'arpo[ray]'")

JOB = {"fp64": True, "section": {"lr": 1e-3, "max_row_tokens": 300}, "steps": STEPS}


@pytest.fixture
def cluster(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parent.parent)])
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        logging_level="error",
        runtime_env={"env_vars": {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}},
    )
    yield
    ray.shutdown()


class RankActor:
    """One rank; what it does is what a rank under torchrun does."""

    def work(self, rank: int, size: int, address: str, folder: str) -> None:
        import torch

        from arpo.learner.lead import LeadLearner, follow
        from arpo.learner.ranks import join, leave

        ranks = join(torch.device("cpu"), rank=rank, size=size, address=address)
        learner = learner_for(JOB, ranks)
        if rank == 0:
            lead = LeadLearner(learner)
            run(lead, learner.policy, JOB, Path(folder))
            lead.close()
        else:
            follow(learner)
        leave()


@pytest.mark.timeout(280)
def test_two_actors_take_the_steps_of_one_process(cluster, tmp_path):
    (tmp_path / "two").mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    actors = [ray.remote(RankActor).options(num_cpus=1).remote() for _ in range(2)]
    ray.get([a.work.remote(rank, 2, address, str(tmp_path / "two")) for rank, a in enumerate(actors)])
    one = here(tmp_path / "one", JOB)
    assert json.loads((tmp_path / "two" / "metrics.json").read_text())[-1]["learner/grad_norm"] > 0
    assert_same_run(one, results(tmp_path / "two"), 1e-9)
