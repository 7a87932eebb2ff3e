"""One episode: lease a desktop, let the policy act, evaluate, release.

Invariant: an episode always ends in exactly one `Trajectory`. It has a score only if the desktop's evaluator gave one;
whatever failed on the way is its `problem`, and then it has none.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace

from arpo.agent.grammar import FormatError
from arpo.agent.profiles import Profile
from arpo.client import EnvClient, Session
from arpo.client.contact import Contact
from arpo.protocol.actions import Action
from arpo.protocol.messages import SessionOptions
from arpo.protocol.problems import Problem, ProblemCode, ProblemError
from arpo.rollout.dialogue import Dialogue, Reply, Words, open_dialogue
from arpo.rollout.engines.base import AnyEngine, EngineError, Sampling
from arpo.rollout.groups import Episode
from arpo.rollout.operations import Operations
from arpo.rollout.row import Encoder
from arpo.telemetry import names, tracing
from arpo.telemetry.phases import add_phase
from arpo.trajectory import Trajectory, Turn
from arpo.trajectory.store import ScreenshotStore

Watch = Callable[[Awaitable[Reply]], Awaitable[Reply]]
"""Awaits a reply for the episode: the place to count requests."""


async def _unwatched(reply: Awaitable[Reply]) -> Reply:
    return await reply


@dataclass(frozen=True)
class EpisodeRules:
    """What all episodes of a run share.

    max_steps: assistant turns. max_format_errors: turns that are no action before the episode ends. timeout_s: after which
    an episode that is not over is a fault of its environment, the time in which the env-server was away left out; None:
    never. keep_row: record the tokens too, to be trained on.
    """

    max_steps: int
    max_format_errors: int
    sampling: Sampling
    options: SessionOptions = field(default_factory=SessionOptions)
    timeout_s: float | None = None
    keep_row: bool = True


class EpisodeRunner:
    """Runs episodes of one run against one env-server. Safe to use concurrently.

    language: what its engines speak, token ids by an encoder or words.
    """

    def __init__(
        self, env: EnvClient, language: Encoder | Words, profile: Profile, screenshots: ScreenshotStore
    ) -> None:
        self._env = env
        self._language = language
        self._profile = profile
        self._screenshots = screenshots

    @property
    def contact(self) -> Contact:
        """Whether the env-server answers."""
        return self._env.contact

    async def run(
        self, episode: Episode, engine: AnyEngine, rules: EpisodeRules, watch: Watch = _unwatched
    ) -> Trajectory:
        """Run an episode to its end, as a trace of its own. Environment and engine failures are in the trajectory.

        Raises EngineUnusableError alone.
        """
        about = {
            names.EPISODE_ID: episode.id,
            names.GROUP_ID: episode.group_id,
            names.TASK_ID: episode.task.id,
            names.TASK_DOMAIN: episode.task.domain,
        }
        with tracing.span(names.EPISODE, about) as span:
            trajectory = await self._run(episode, engine, rules, watch)
            span.set(names.TURNS, len(trajectory.turns))
            span.set(names.SCORE, trajectory.score)
            span.set(names.FORMAT_ERRORS, sum(turn.format_error is not None for turn in trajectory.turns))
            span.set(names.POLICY_VERSION, trajectory.policy_version if trajectory.turns else None)
            if trajectory.problem is not None:
                span.fail(trajectory.problem.code.value, trajectory.problem.fault.value)
        if span.context is None:
            return trajectory
        traced = {"trace_id": span.context.trace_id, "span_id": span.context.span_id}
        return trajectory.model_copy(update=traced)

    async def _run(
        self, episode: Episode, engine: AnyEngine, rules: EpisodeRules, watch: Watch
    ) -> Trajectory:
        profile = self._profile
        prompt = profile.user_prompt(episode.task.instruction)
        attempt = _Attempt(open_dialogue(engine, self._language, profile.system(), prompt))
        started = time.time()
        clock = time.monotonic()
        problem: Problem | None = None
        try:
            async with self.contact.timeout(rules.timeout_s):
                with attempt.operations.of("reset"):
                    session = await self._env.open_session(episode.task.wire(), rules.options)
                async with session:
                    await self._act(attempt, session, episode, rules, watch)
                    with attempt.operations.of("evaluate"):
                        attempt.score = await session.evaluate()
        except ProblemError as error:
            problem = error.problem
        except TimeoutError:
            overdue = f"the episode was not over after {rules.timeout_s:g} s"
            problem = ProblemError(ProblemCode.STEP_TIMEOUT, overdue).problem
        except EngineError as error:
            problem = ProblemError(ProblemCode.INTERNAL, f"engine: {error}").problem
        row = attempt.dialogue.row
        trajectory = Trajectory(
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
            timings=dict(attempt.operations.timings),
            operations=tuple(attempt.operations.done),
        )
        return trajectory if rules.keep_row else trajectory.without_row()

    async def _act(
        self, attempt: _Attempt, session: Session, episode: Episode, rules: EpisodeRules, watch: Watch
    ) -> None:
        for turn in range(rules.max_steps):
            began = time.time()
            screenshot = session.observation.screenshot
            self._screenshots.put(screenshot.data)
            attempt.dialogue.observe(screenshot)
            sampling = replace(rules.sampling, seed=episode.seed + turn)
            with attempt.operations.of("generate", turn) as span:
                asked = time.monotonic()
                reply = await watch(attempt.dialogue.reply(sampling))
                if reply.queued_s:
                    add_phase("queue", reply.queued_s, asked)
                span.set(names.POLICY_VERSION, reply.policy_version)
                span.set(names.TOKENS, reply.end - reply.start)
            actions: list[Action] = []
            format_error: str | None = None
            try:
                actions = self._profile.parse(reply.text, (screenshot.width, screenshot.height))
            except FormatError as error:
                format_error = str(error)
                attempt.format_errors += 1
            attempt.turns.append(
                Turn(
                    start=reply.start,
                    end=reply.end,
                    text=reply.text,
                    actions=actions,
                    format_error=format_error,
                    policy_version=reply.policy_version,
                    pushes=list(reply.pushes),
                    observation=screenshot.sha256,
                    started_at=began,
                )
            )
            if format_error is not None:
                if attempt.format_errors >= rules.max_format_errors:
                    break
                continue
            with attempt.operations.of("step", turn, {names.ACTIONS: len(actions)}):
                stepped = await session.step(actions)
            if stepped.done:
                break
        attempt.final_observation = self._screenshots.put(session.observation.screenshot.data)


@dataclass
class _Attempt:
    """What an episode has gathered so far."""

    dialogue: Dialogue
    turns: list[Turn] = field(default_factory=list)
    format_errors: int = 0
    score: float | None = None
    final_observation: str | None = None
    operations: Operations = field(default_factory=Operations)
