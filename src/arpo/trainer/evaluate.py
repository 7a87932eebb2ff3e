"""Stand-alone evaluation: of a run's checkpoint, of `model.path`, or of a model behind a server."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from arpo.checkpoints.folders import Checkpoint
from arpo.config.model import Config
from arpo.evaluation.identity import Identity, checkpoint_identity, model_identity
from arpo.evaluation.record import open_record, remove_record
from arpo.evaluation.result import EvaluationResult
from arpo.protocol.problems import ConfigError
from arpo.rollout.engines.openai import base_url
from arpo.trainer.checkpoints import choose
from arpo.trainer.progress import Reporter
from arpo.trainer.run_directory import TRAINING_LABEL, RunDirectory
from arpo.trainer.stage import Stage, load_tasks, served
from arpo.trainer.state import Progress
from arpo.trainer.watching import go_on, write_result

NO_CHECKPOINT = "none"
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


async def evaluate_run(
    config: Config, reporter: Reporter, label: str, which: str = "latest", *, fresh: bool = False
) -> EvaluationResult:
    """Evaluate on `tasks.eval_set`; episodes and result are kept under `<run>/evaluations/<label>`.

    Only episodes without a recorded valid result are run. which: the checkpoint, `latest`, `best` or `step-N`, or `none`:
    `model.path` itself. fresh: forget what is recorded under the label.
    Raises ConfigError when there is no such checkpoint, for a label that is no file name or that training uses, and for one
    under which something else was evaluated.
    """
    if not _LABEL.fullmatch(label) or TRAINING_LABEL.fullmatch(label):
        raise ConfigError(f"--label {label} cannot be used; fix: a plain name, not before, after or step-N")
    with RunDirectory(config) as run:
        policy = _policy(config, run, which, reporter)
        if policy.saved is None and not run.checkpoints.exists():
            run.keep_config(config)
        _, _, tasks = load_tasks(config)
        progress = policy.progress
        identity = Identity.of(
            config,
            tasks,
            label=label,
            step=progress.step,
            policy=policy.name,
            policy_version=progress.policy_version,
        )
        folder = run.evaluation_record(label)
        if fresh:
            run.evaluation(label).unlink(missing_ok=True)
            remove_record(folder)
        record = open_record(folder, identity, config.trainer.eval_repeats, run.screenshots)
        if record.complete:
            reporter.say(f"{folder} is complete: nothing to run (--fresh makes it anew)")
            write_result(run, record)
            return record.result()
        if valid := sum(t.valid for t in record.episodes):
            reporter.say(
                f"going on: {valid} of {config.trainer.eval_repeats * len(tasks)} episodes are recorded"
            )
        async with _stage(config, run, policy, reporter) as parts:
            return await go_on(parts, progress, record)


@dataclass(frozen=True)
class _Policy:
    """What is evaluated. name: other words for another policy."""

    name: str
    saved: Checkpoint | None
    progress: Progress


def _policy(config: Config, run: RunDirectory, which: str, reporter: Reporter) -> _Policy:
    if config.engine.kind == "openai":
        if which not in ("latest", NO_CHECKPOINT):
            raise ConfigError(
                f"--checkpoint {which} is not what engine.openai.url serves; fix: leave it out, or engine.kind=hf"
            )
        section = config.engine.openai
        return _Policy(f"{section.model} on {base_url(section.url or '')}", None, Progress())
    saved = None if which == NO_CHECKPOINT else choose(run.root, which, reporter.say)
    if saved is None:
        return _Policy(model_identity(config), None, Progress())
    from arpo.learner.checkpoint import read_state

    reporter.say(f"evaluating {saved}")
    progress = Progress.model_validate(read_state(saved)["progress"])
    return _Policy(checkpoint_identity(saved), saved, progress)


@asynccontextmanager
async def _stage(
    config: Config, run: RunDirectory, policy: _Policy, reporter: Reporter
) -> AsyncIterator[Stage]:
    if config.engine.kind == "openai":
        async with served(config, run, reporter) as stage:
            yield stage
        return
    # torch takes seconds to load, and a model server needs none here
    from arpo.trainer.assembly import assemble

    version = policy.progress.policy_version
    async with assemble(config, run, policy.saved, reporter, fill=True, policy_version=version) as parts:
        yield parts
