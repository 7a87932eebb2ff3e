"""What each rank of tests/learner/test_ranks.py runs: `rank_program.py FOLDER...`, each with a job.json.

The leader (rank 0) takes a job's steps and writes what came of them to its folder; the others follow it.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch

from arpo.config.sections import LearnerSection, ReplaySection
from arpo.learner.lead import LeadLearner, follow
from arpo.learner.learner import Learner
from arpo.learner.ranks import join, leave
from arpo.policy.lora import Lora
from arpo.trajectory import GroupMember
from policy_kit import Pictures, conversation, fresh_policy

REPLIES = ["Press the button.", "Thought: It is done.\nAction: finished()", "Press.", "It is done."]


class Drawn:
    """An image source that can be sent to other processes."""

    def __init__(self, pictures: Pictures) -> None:
        self.pictures = dict(pictures)

    def __call__(self, sha256: str) -> bytes:
        return self.pictures[sha256]


def groups_of(policy, pictures, number: int):
    """Two groups of rows of different lengths, one of them replayed and one without pictures' company."""
    groups = []
    for task in range(2):
        members = []
        for place in range(3 + task):
            seed = 100 * number + 10 * task + place
            replies = [REPLIES[(seed + k) % 4] for k in range(1 + place % 3)]
            trajectory = conversation(
                policy, pictures, replies, seed=seed, score=float(place == 0), task_id=str(task)
            )
            members.append(GroupMember(trajectory=trajectory, replayed=place == 0 and task == 1))
        groups.append(members)
    return groups


def learner_for(job, ranks=None) -> Learner:
    options = dict(job.get("policy", {}))
    if "lora" in options:
        options["lora"] = Lora(**options["lora"])
    policy = fresh_policy(**options)
    if job.get("fp64"):
        policy.model.double()
    section = LearnerSection(**job["section"])
    return Learner(policy, section, ReplaySection(), temperature=1.0, seed=0, ranks=ranks)


def run(learner, policy, job, folder: Path) -> None:
    """Load, steps, save, as the job says; losses and weights are left in the folder."""
    pictures = Pictures()
    batches = [groups_of(policy, pictures, number) for number in range(*job["steps"])]
    images = Drawn(pictures)
    if "load" in job:
        learner.load(Path(job["load"]))
    metrics = [learner.step(groups, images) for groups in batches]
    if "save" in job:
        learner.begin_save(Path(job["save"])).result()
    (folder / "metrics.json").write_text(json.dumps(metrics))
    torch.save({n: t.detach().clone() for n, t in learner.weights().items()}, folder / "weights.pt")


def main() -> None:
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    ranks = join(torch.device("cpu"), rank=rank, size=size, address="env://")
    for folder in map(Path, sys.argv[1:]):
        job = json.loads((folder / "job.json").read_text())
        learner = learner_for(job, ranks)
        if rank == 0:
            lead = LeadLearner(learner)
            run(lead, learner.policy, job, folder)
            lead.close()
        else:
            follow(learner)
    leave()


if __name__ == "__main__":
    main()
