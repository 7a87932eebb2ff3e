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
from arpo.rollout.evaluation import EvaluationResult
from arpo.trainer.assembly import Assembly
from arpo.trainer.checkpoints import evaluated
from arpo.trainer.process import peak_rss_gib
from arpo.trainer.saving import Saver
from arpo.trainer.state import Progress
from arpo.trainer.stop import Stop
from arpo.trainer.summary import Summary, missing_stages
from arpo.trainer.trackers.lanes import reason
from arpo.trainer.version import CodeVersion


class Ending:
    """Writes the summary of a run. started: when its process began, by `time.monotonic`."""

    def __init__(self, parts: Assembly, progress: Progress, version: CodeVersion, started: float) -> None:
        self._parts = parts
        self._progress = progress
        self._version = version
        self._started = started

    @asynccontextmanager
    async def known(self, saver: Saver, stop: Stop) -> AsyncIterator[None]:
        """Around all of the run: what ends it early is in the summary, once what has finished is saved."""
        try:
            async with saver.until_left(stop):
                yield
        except asyncio.CancelledError:
            self.summarise(None, "stopped", str(stop.ended) if stop.asked else "cancelled")
            raise
        except Exception as error:
            self.summarise(None, "failed", reason(innermost(error)))
            raise

    def summarise(
        self,
        after: EvaluationResult | None,
        state: Literal["finished", "stopped", "failed"] = "finished",
        why: str | None = None,
    ) -> Summary:
        """Write and return `summary.json`."""
        parts, progress = self._parts, self._progress
        saved = folders.complete(parts.run.checkpoints)
        newest = saved[-1] if saved else None
        best = folders.best(saved, evaluated(parts.run.root))
        rows = progress.per_step
        summary = Summary(
            run=str(parts.run.root),
            state=state,
            reason=why,
            version=self._version,
            provider=parts.config.env.provider if parts.server else str(parts.config.env.url),
            steps=progress.step,
            policy_version=progress.policy_version,
            optimizer_steps=int(sum(row["learner/optimizer_steps"] for row in rows)),
            warm_start=progress.warm_start,
            before=progress.before,
            after=after,
            per_step=rows,
            faults=progress.faults,
            env_server_restarts=parts.server.restarts if parts.server else 0,
            checkpoint=str(newest) if newest else None,
            best_checkpoint=str(best) if best else None,
            damaged_checkpoints=progress.damaged_checkpoints,
            config_changes=parts.run.config_changes(),
            version_changes=parts.run.version_changes(),
            # rows of checkpoints from before it was measured have none
            peak_rss_gib=max([peak_rss_gib(), *(row.get("driver/rss_gib", 0.0) for row in rows)]),
            seconds=time.monotonic() - self._started,
            missing=missing_stages(parts.config, progress, after, newest.step if newest else None),
        )
        parts.run.write("summary.json", summary.model_dump(mode="json"))
        return summary


def innermost(error: BaseException) -> BaseException:
    """The first error that a task group has wrapped."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
