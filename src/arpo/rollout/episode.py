"""One episode: lease a desktop, let the policy act, evaluate, release.

Invariant: an episode always ends in exactly one `Trajectory`. It has a score only if the desktop's evaluator gave one;
whatever failed on the way is its `problem`, and then it has none.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from arpo.agent.grammar import FormatError
from arpo.agent.profiles import Profile
from arpo.client import EnvClient, Session
from arpo.protocol.actions import Action
from arpo.protocol.messages import SessionOptions
from arpo.protocol.problems import Problem, ProblemCode, ProblemError
from arpo.rollout.engines.base import Engine, EngineError, Sampling
from arpo.rollout.groups import Episode
from arpo.rollout.row import Encoder, RowBuilder
from arpo.trajectory import Trajectory, Turn
from arpo.trajectory.store import ScreenshotStore


@dataclass(frozen=True)
class EpisodeRules:
    """What all episodes of a run share.

    max_steps: assistant turns. max_format_errors: turns that are no action before the episode ends. timeout_s: after which
    an episode that is not over is a fault of its environment, whatever it waits for; None: never.
    """

    max_steps: int
    max_format_errors: int
    sampling: Sampling
    options: SessionOptions = field(default_factory=SessionOptions)
    timeout_s: float | None = None


class EpisodeRunner:
    """Runs episodes of one run against one env-server. Safe to use concurrently."""

    def __init__(
        self, env: EnvClient, encoder: Encoder, profile: Profile, screenshots: ScreenshotStore
    ) -> None:
        self._env = env
        self._encoder = encoder
        self._profile = profile
        self._screenshots = screenshots

    async def run(self, episode: Episode, engine: Engine, rules: EpisodeRules) -> Trajectory:
        """Run an episode to its end. Environment and engine failures are in the trajectory; nothing is raised."""
        attempt = _Attempt(
            RowBuilder(
                self._encoder, self._profile.system(), self._profile.user_prompt(episode.task.instruction)
            )
        )
        started = time.time()
        clock = time.monotonic()
        problem: Problem | None = None
        try:
            async with asyncio.timeout(rules.timeout_s):
                with attempt.phase("reset"):
                    session = await self._env.open_session(episode.task.wire(), rules.options)
                async with session:
                    await self._act(attempt, session, episode, engine, rules)
                    with attempt.phase("evaluate"):
                        attempt.score = await session.evaluate()
        except ProblemError as error:
            problem = error.problem
        except TimeoutError:
            overdue = f"the episode was not over after {rules.timeout_s:g} s"
            problem = ProblemError(ProblemCode.STEP_TIMEOUT, overdue).problem
        except EngineError as error:
            problem = ProblemError(ProblemCode.INTERNAL, f"engine: {error}").problem
        row = attempt.row
        return Trajectory(
            episode_id=episode.id,
            task_id=episode.task.id,
            domain=episode.task.domain,
            instruction=episode.task.instruction,
            group_id=episode.group_id,
            token_ids=row.token_ids,
            loss_mask=row.loss_mask,
            logprobs=row.logprobs,
            images=row.images,
            turns=attempt.turns,
            score=None if problem else attempt.score,
            format=-1.0 if attempt.format_errors else 0.0,
            final_observation=attempt.final_observation,
            problem=problem,
            started_at=started,
            duration_s=time.monotonic() - clock,
            timings=dict(attempt.timings),
        )

    async def _act(
        self, attempt: _Attempt, session: Session, episode: Episode, engine: Engine, rules: EpisodeRules
    ) -> None:
        row = attempt.row
        for turn in range(rules.max_steps):
            screenshot = session.observation.screenshot
            self._screenshots.put(screenshot.data)
            row.observe(screenshot)
            sampling = Sampling(
                temperature=rules.sampling.temperature,
                top_p=rules.sampling.top_p,
                max_new_tokens=rules.sampling.max_new_tokens,
                stop_token_ids=self._encoder.stop_token_ids,
                seed=episode.seed + turn,
            )
            with attempt.phase("generate"):
                generation = await engine.generate(row.token_ids, row.pictures, sampling)
            start, end, text = row.generated(generation)
            actions: list[Action] = []
            format_error: str | None = None
            try:
                actions = self._profile.parse(text, (screenshot.width, screenshot.height))
            except FormatError as error:
                format_error = str(error)
                attempt.format_errors += 1
            attempt.turns.append(
                Turn(
                    start=start,
                    end=end,
                    text=text,
                    actions=actions,
                    format_error=format_error,
                    policy_version=generation.policy_version,
                    pushes=[(start + at, version) for at, version in generation.pushes],
                    observation=screenshot.sha256,
                )
            )
            if format_error is not None:
                if attempt.format_errors >= rules.max_format_errors:
                    break
                continue
            with attempt.phase("step"):
                reply = await session.step(actions)
            if reply.done:
                break
        attempt.final_observation = self._screenshots.put(session.observation.screenshot.data)


@dataclass
class _Attempt:
    """What an episode has gathered so far."""

    row: RowBuilder
    turns: list[Turn] = field(default_factory=list)
    format_errors: int = 0
    score: float | None = None
    final_observation: str | None = None
    timings: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the seconds spent inside under a phase's name."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.timings[name] += time.monotonic() - start
