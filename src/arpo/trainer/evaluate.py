"""Stand-alone evaluation of one of a run's checkpoints, or of `model.path`."""

from __future__ import annotations

import re

from arpo.config.model import Config
from arpo.learner.checkpoint import read_state
from arpo.protocol.problems import ConfigError
from arpo.rollout.evaluation import EvaluationResult
from arpo.trainer.assembly import assemble
from arpo.trainer.checkpoints import choose
from arpo.trainer.progress import Reporter
from arpo.trainer.run_directory import RunDirectory
from arpo.trainer.state import Progress
from arpo.trainer.watching import run_evaluation

_LABEL = re.compile(r"(?!(before|after|step-.*)$)[A-Za-z0-9][A-Za-z0-9._-]*")


async def evaluate_run(
    config: Config, reporter: Reporter, label: str, which: str = "latest"
) -> EvaluationResult:
    """Evaluate on `tasks.eval_set`; the result is kept under `<run>/evaluations/<label>.json`.

    which: the checkpoint, `latest`, `best` or `step-N`. Raises ConfigError when there is no such checkpoint, and for a
    label that is no file name, or that training uses.
    """
    if not _LABEL.fullmatch(label):
        raise ConfigError(f"--label {label} cannot be used; fix: a plain name, not before, after or step-N")
    with RunDirectory(config) as run:
        saved = choose(run.root, which, reporter.say)
        progress = Progress()
        if saved is not None:
            progress = Progress.model_validate(read_state(saved)["progress"])
            reporter.say(f"evaluating {saved}")
        else:
            run.keep_config(config)
        async with assemble(
            config, run, saved, reporter, fill=True, policy_version=progress.policy_version
        ) as parts:
            return await run_evaluation(parts, progress, label)
