"""`arpo export`: one of a run's checkpoints as a model folder for others."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from arpo.learner.export import export
from arpo.protocol.problems import ConfigError
from arpo.trainer.checkpoints import choose
from arpo.trainer.progress import Reporter


def export_run(
    run: Path, folder: Path, which: str, dtype: Literal["float32", "bfloat16"] | None, reporter: Reporter
) -> str:
    """Export a checkpoint (`latest`, `best` or `step-N`); returns one line that says what was written.

    Raises ConfigError when the run has no such checkpoint, or the folder holds something.
    """
    saved = choose(run, which, reporter.say)
    if saved is None:
        raise ConfigError(
            f"{run} has no checkpoint; fix: name a run directory in which `arpo train` has saved one"
        )
    reporter.say(f"exporting {saved}")
    written = export(saved, folder, dtype)
    return f"{folder}: the policy of {saved.path.name} in {written}"
