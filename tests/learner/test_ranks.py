"""Two ranks against one: real processes under torchrun, gloo between them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rank_program import learner_for, run

HERE = Path(__file__).parent
STEPS = [0, 3]
SECTION = {"lr": 1e-3, "max_row_tokens": 300, "grad_clip": 0.5}


def on_ranks(number, jobs):
    """Run jobs, by their folders, on that many ranks, one after the other."""
    for folder, job in jobs.items():
        folder.mkdir(parents=True)
        (folder / "job.json").write_text(json.dumps(job))
    paths = [str(HERE), str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(number)]
    done = subprocess.run(
        [*command, str(HERE / "rank_program.py"), *map(str, jobs)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[:4000]


def here(folder, job):
    """The same job in this process, without any other."""
    folder.mkdir()
    learner = learner_for(job)
    run(learner, learner.policy, job, folder)
    return results(folder)


def results(folder):
    return json.loads((folder / "metrics.json").read_text()), torch.load(folder / "weights.pt")


def assert_same_run(one, other, tolerance, moved=1e-2):
    """Losses and norms to `tolerance`; weights to `moved` of a step of Adam, which magnifies tiny gradients."""
    (metrics, weights), (other_metrics, other_weights) = one, other
    assert len(metrics) == len(other_metrics)
    for a, b in zip(metrics, other_metrics, strict=True):
        assert a.keys() == b.keys()
        for name in a.keys() - {"learner/seconds"}:
            assert a[name] == pytest.approx(b[name], rel=tolerance, abs=tolerance), name
    for name, value in weights.items():
        difference = float((value.double() - other_weights[name].double()).abs().max())
        assert difference <= moved * SECTION["lr"] * len(metrics), name


JOBS = {
    "fp64": ({"fp64": True, "section": SECTION}, 1e-9),
    "fp32": ({"section": SECTION}, 1e-4),
    "several minibatches and epochs, KL": (
        {"fp64": True, "section": SECTION | {"minibatches": 2, "epochs": 2, "kl": "k3"}},
        1e-9,
    ),
    "trained vision tower, Qwen3-VL": (
        {"fp64": True, "section": SECTION, "policy": {"architecture": "qwen3_vl", "freeze_vision": False}},
        1e-9,
    ),
    "LoRA": (
        {"fp64": True, "section": SECTION, "policy": {"lora": {"rank": 4, "alpha": 8.0}}},
        1e-9,
    ),
    "activation checkpointing": (
        {"fp64": True, "section": SECTION, "policy": {"gradient_checkpointing": True}},
        1e-9,
    ),
    "more ranks than rows in a pass": (
        {"fp64": True, "section": SECTION | {"max_row_tokens": 100_000}},
        1e-9,
    ),
}


RESUMED = {"fp64": True, "section": SECTION | {"kl": "k3", "warmup_steps": 3}}
"""Run to step 2 on some ranks, and on to step 4 on others."""


@pytest.fixture(scope="module")
def on_two(tmp_path_factory):
    """All jobs on two ranks: starting the ranks costs more than the steps."""
    root = tmp_path_factory.mktemp("two")
    here(root / "one", RESUMED | {"steps": [0, 2], "save": str(root / "by one")})
    jobs = {name: job | {"steps": STEPS} for name, (job, _) in JOBS.items()}
    jobs |= {
        "saves": RESUMED | {"steps": [0, 2], "save": str(root / "by two")},
        "goes on": RESUMED | {"steps": [2, 4], "load": str(root / "by one")},
    }
    folders = {name: root / str(number) for number, name in enumerate(jobs)}
    on_ranks(2, {folders[name]: job for name, job in jobs.items()})
    return folders | {"by two": root / "by two"}


@pytest.mark.parametrize("name", JOBS)
def test_two_ranks_take_the_steps_of_one(name, on_two, tmp_path):
    job, tolerance = JOBS[name]
    one = here(tmp_path / "one", job | {"steps": STEPS})
    assert one[0][-1]["learner/grad_norm"] > 0
    assert_same_run(one, results(on_two[name]), tolerance)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    metrics, weights = here(tmp_path_factory.mktemp("whole") / "one", RESUMED | {"steps": [0, 4]})
    return metrics[2:], weights


def test_what_one_rank_saved_goes_on_on_two(on_two, uninterrupted):
    assert_same_run(uninterrupted, results(on_two["goes on"]), 1e-9)


def test_what_two_ranks_saved_goes_on_on_one(on_two, uninterrupted, tmp_path):
    loaded = here(tmp_path / "one", RESUMED | {"steps": [2, 4], "load": str(on_two["by two"])})
    assert_same_run(uninterrupted, loaded, 1e-9)
