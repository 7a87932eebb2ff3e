"""How a run ends: `summary.json` says it, whatever the end is.

Invariant: a `summary.json` is that of the latest end of the run; none is there while it runs, or after it was killed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

from arpo.checkpoints import folders
from arpo.config.model import Config
from arpo.evaluation.result import EvaluationResult
from arpo.trainer.assembly import Assembly
from arpo.trainer.checkpoints import evaluated
from arpo.trainer.process import peak_rss_gib
from arpo.trainer.run_directory import RunDirectory
from arpo.trainer.state import Progress
from arpo.trainer.stop import Stop
from arpo.trainer.summary import Summary, missing_stages
from arpo.trainer.trackers.lanes import reason
from arpo.trainer.version import CodeVersion


class Ending:
    """Writes the summary of a run. started: when its process began, by `time.monotonic`.

    learner_restarts: before this process's present attempt. progress: of the run, from when it is known where it goes on;
    before that there is nothing to tell. parts: once they are there. after: the last evaluation.
    """

    def __init__(
        self, config: Config, run: RunDirectory, version: CodeVersion, started: float, learner_restarts: int
    ) -> None:
        self._config = config
        self._run = run
        self._version = version
        self._started = started
        self._learner_restarts = learner_restarts
        self.progress: Progress | None = None
        self.parts: Assembly | None = None
        self.after: EvaluationResult | None = None

    @asynccontextmanager
    async def known(self, stop: Stop) -> AsyncIterator[None]:
        """Around all of the run: what ends it early is in the summary, in the words in which it leaves the run."""
        try:
            yield
        except asyncio.CancelledError:
            self._early("stopped", str(stop.ended) if stop.asked else "cancelled")
            raise
        except Exception as error:
            self._early("failed", reason(innermost(error)))
            raise

    def _early(self, state: Literal["stopped", "failed"], why: str) -> None:
        if self.progress is not None:
            self._write(self.progress, state, why)

    def finished(self, progress: Progress) -> Summary:
        """The run came to its end."""
        return self._write(progress, "finished", None)

    def _write(
        self, progress: Progress, state: Literal["finished", "stopped", "failed"], why: str | None
    ) -> Summary:
        config, run, parts = self._config, self._run, self.parts
        server = parts.server if parts else None
        saved = folders.complete(run.checkpoints)
        newest = saved[-1] if saved else None
        best = folders.best(saved, evaluated(run.root))
        rows = progress.per_step
        summary = Summary(
            run=str(run.root),
            state=state,
            reason=why,
            version=self._version,
            provider=config.env.url or config.env.provider,
            steps=progress.step,
            policy_version=progress.policy_version,
            optimizer_steps=progress.optimizer_steps,
            warm_start=progress.warm_start,
            before=progress.before,
            after=self.after,
            replayed=progress.replayed,
            per_step=rows,
            faults=progress.faults,
            env_server_restarts=server.restarts if server else 0,
            engine_restarts=parts.launcher.engine_restarts if parts else 0,
            learner_restarts=self._learner_restarts,
            attempts=run.attempt,
            checkpoint=str(newest) if newest else None,
            best_checkpoint=str(best) if best else None,
            damaged_checkpoints=progress.damaged_checkpoints,
            config_changes=run.config_changes(),
            version_changes=run.version_changes(),
            # rows of checkpoints from before it was measured have none
            peak_rss_gib=max([peak_rss_gib(), *(row.get("driver/rss_gib", 0.0) for row in rows)]),
            seconds=time.monotonic() - self._started,
            missing=missing_stages(config, progress, self.after, newest.step if newest else None),
        )
        run.write("summary.json", summary.model_dump(mode="json"))
        return summary


def innermost(error: BaseException) -> BaseException:
    """The first error that a task group has wrapped."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
