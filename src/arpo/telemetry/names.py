"""The names of everything that ARPO traces and measures; `docs/telemetry.md` is made from them.

Invariant: no attribute holds a text that a policy wrote, an observation, a URL or a credential.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

SCOPE = "arpo"
"""The instrumentation scope of all spans and metrics."""
TRAINER, ENV_SERVER, ENGINE, LEARNER_RANK = (
    "arpo-trainer",
    "arpo-env-server",
    "arpo-engine",
    "arpo-learner-rank",
)
"""`service.name`, unless `OTEL_SERVICE_NAME` gives another."""

Value = str | bool | int | float
Attributes = Mapping[str, Value]


@dataclass(frozen=True)
class Attribute:
    """An attribute's name and what it holds."""

    name: str
    what: str

    @property
    def label(self) -> str:
        """What metrics call it: the label that Prometheus shows."""
        return self.name.rpartition(".")[2]


EPISODE_ID = Attribute("arpo.episode.id", "as in the trajectory log")
GROUP_ID = Attribute("arpo.group.id", "the group that shares an advantage baseline")
TASK_ID = Attribute("arpo.task.id", "the task")
TASK_DOMAIN = Attribute("arpo.task.domain", "its domain")
TURN = Attribute("arpo.turn", "assistant turn, from 0")
TURNS = Attribute("arpo.turns", "how many turns an episode had")
SCORE = Attribute("arpo.score", "the evaluator's, absent when there is none")
FORMAT_ERRORS = Attribute("arpo.format_errors", "turns whose text was no action")
POLICY_VERSION = Attribute("arpo.policy.version", "of the policy that sampled, or that was pushed")
TOKENS = Attribute("arpo.tokens", "how many were sampled")
ACTIONS = Attribute("arpo.actions", "how many a step performs")
FAULT_CODE = Attribute(
    "arpo.fault.code", "the problem's code, as in `faults.jsonl`; the span has status error"
)
FAULT = Attribute("arpo.fault", "who is to blame: environment, agent, client")
ERROR_TYPE = Attribute("error.type", "class of an error that has no code")
SESSION_ID = Attribute("arpo.session.id", "the leased session")
SEQ = Attribute("arpo.step.seq", "number of a step in its session")
DESKTOP = Attribute("arpo.desktop", "number of the desktop in its pool")
OPERATION = Attribute("arpo.operation", "reset, generate, step or evaluate")
PHASE = Attribute("arpo.phase", "start, clean, setup, act, settle, screenshot, encode, evaluate")
OUTCOME = Attribute("arpo.outcome", "`ok`, `cancelled`, or the code of the problem")
STATE = Attribute("arpo.state", "of a session or a desktop")
RUN = Attribute("arpo.run", "`run.name`")
ATTEMPT = Attribute("arpo.attempt", "number of the process that works on the run, from 1")
TRAIN_STEP_NUMBER = Attribute("arpo.train_step.number", "the training step, from 1")
EPISODES = Attribute("arpo.episodes", "how many a step learned from")
INJECTED = Attribute("arpo.replay.injected", "how many failures replay replaced by stored successes")
METHOD = Attribute("arpo.learner.method", "what a learner rank was asked for")
RANK = Attribute("arpo.learner.rank", "number of a learner rank")
STATISTIC = Attribute("arpo.statistic", "mean or max")
PART = Attribute("arpo.part", "rollout (waiting for the batch) or learn (everything after it)")
RESULT = Attribute("arpo.result", "success, failure (`replay.success_above`) or invalid")

ATTRIBUTES = tuple(value for value in list(globals().values()) if isinstance(value, Attribute))


@dataclass(frozen=True)
class SpanName:
    """A span: its name, its parent (empty: it is a trace's root), what it covers and what it carries."""

    name: str
    parent: str
    what: str
    attributes: tuple[Attribute, ...] = ()
    kind: Literal["internal", "client", "server"] = "internal"


EPISODE = SpanName(
    "arpo.episode",
    "",
    "one attempt at a task, from asking for a desktop to giving it back",
    (EPISODE_ID, GROUP_ID, TASK_ID, TASK_DOMAIN, TURNS, SCORE, FORMAT_ERRORS, POLICY_VERSION),
)
RESET = SpanName(
    "arpo.reset",
    "arpo.episode",
    "a desktop in the task's initial state, as the trainer waits for it",
    kind="client",
)
LEASE = SpanName("arpo.lease", "arpo.reset", "the lease wait: until a desktop was free and leased")
GENERATE = SpanName("arpo.generate", "arpo.episode", "one turn of the policy", (TURN, POLICY_VERSION, TOKENS))
STEP = SpanName(
    "arpo.step",
    "arpo.episode",
    "a turn's actions, all requests and repeats of them included",
    (TURN, ACTIONS),
    "client",
)
EVALUATE = SpanName("arpo.evaluate", "arpo.episode", "the evaluation, all polls included", kind="client")

ENV_RESET = SpanName(
    "env.reset",
    "arpo.reset",
    "the reset on the env-server",
    (SESSION_ID, TASK_ID, DESKTOP, OUTCOME),
    "server",
)
ENV_STEP = SpanName(
    "env.step",
    "arpo.step",
    "the step on the env-server; a repeat of it makes no other",
    (SESSION_ID, TASK_ID, DESKTOP, SEQ, OUTCOME),
    "server",
)
ENV_EVALUATE = SpanName(
    "env.evaluate",
    "arpo.evaluate",
    "the evaluation on the env-server",
    (SESSION_ID, TASK_ID, DESKTOP, OUTCOME),
    "server",
)

PHASES: Mapping[str, SpanName] = {
    "start": SpanName("provider.start", "env.reset", "boot: the provider starts a guest, where none was ready"),
    "clean": SpanName("provider.clean", "env.reset", "the provider cleans a used guest, where that was not done ahead"),
    "setup": SpanName("desktop.setup", "env.reset", "the task's setup steps"),
    "act": SpanName("desktop.act", "env.step", "the actions themselves"),
    "settle": SpanName("desktop.settle", "env.reset, env.step", "until the screen is quiet"),
    "screenshot": SpanName("desktop.screenshot", "env.reset, env.step", "the guest takes the picture"),
    "encode": SpanName("desktop.encode", "env.reset, env.step", "the picture is compared and encoded for the wire"),
    "evaluate": SpanName("desktop.evaluate", "env.evaluate", "the task's evaluators"),
}  # fmt: skip
"""The span of each phase of an env-server's operation (`arpo.telemetry.phases`)."""

ENGINE_GENERATE = SpanName(
    "engine.generate",
    "arpo.generate",
    "a request in the process of a Ray engine",
    (POLICY_VERSION, TOKENS),
    "server",
)
ENGINE_PUSH = SpanName(
    "engine.push", "arpo.push", "a Ray engine takes new weights", (POLICY_VERSION,), "server"
)
LEARNER_CALL = SpanName(
    "learner.call",
    "arpo.learn",
    "what a Ray learner rank does",
    (METHOD, RANK),
    "server",
)

TRAIN_STEP = SpanName(
    "arpo.train_step",
    "",
    "one training step; it links to the episodes that it learned from, replayed ones included",
    (TRAIN_STEP_NUMBER, POLICY_VERSION, EPISODES, RUN, ATTEMPT),
)
COLLECT = SpanName("arpo.collect", "arpo.train_step", "waits until the step has its batch")
REPLAY = SpanName("arpo.replay", "arpo.train_step", "the replay rule over the groups", (INJECTED,))
LEARN = SpanName("arpo.learn", "arpo.train_step", "the learner's step: log-probs, loss, optimizer")
PUSH = SpanName("arpo.push", "arpo.train_step", "the engine gets the new weights", (POLICY_VERSION,))
CHECKPOINT = SpanName(
    "arpo.checkpoint",
    "arpo.train_step",
    "what a checkpoint keeps the loop waiting for; it is written beside the next step",
)

SPANS: tuple[SpanName, ...] = (
    *(value for value in list(globals().values()) if isinstance(value, SpanName)),
    *PHASES.values(),
)

BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
"""Upper bounds of every histogram of durations."""


@dataclass(frozen=True)
class Metric:
    """A metric. unit: in UCUM's notation."""

    name: str
    kind: Literal["histogram", "counter", "gauge"]
    unit: str
    service: str
    what: str
    attributes: tuple[Attribute, ...] = ()

    @property
    def prometheus(self) -> str:
        """Its name in Prometheus, as OpenTelemetry collectors translate it; `/metrics` of the env-server says the same."""
        name = self.name.replace(".", "_") + {"s": "_seconds", "1": "_ratio"}.get(self.unit, "")
        return name + ("_total" if self.kind == "counter" else "")


SERVER_OPERATION = Metric(
    "arpo.operation",
    "histogram",
    "s",
    ENV_SERVER,
    "desktop operations by how they ended",
    (OPERATION, OUTCOME),
)
SERVER_PHASE = Metric(
    "arpo.phase", "histogram", "s", ENV_SERVER, "what operations spend their time on", (OPERATION, PHASE)
)
SERVER_PROBLEMS = Metric(
    "arpo.problems", "counter", "{problem}", ENV_SERVER, "problems answered", (FAULT_CODE, FAULT)
)
SERVER_REPEATS = Metric(
    "arpo.step.repeats",
    "counter",
    "{step}",
    ENV_SERVER,
    "steps sent again and answered without touching the desktop",
)
SERVER_REAPED = Metric(
    "arpo.sessions.reaped",
    "counter",
    "{session}",
    ENV_SERVER,
    "sessions ended because their clients were silent",
)
SERVER_SESSIONS = Metric(
    "arpo.sessions", "gauge", "{session}", ENV_SERVER, "sessions by state; closed ones are left out", (STATE,)
)
SERVER_DESKTOPS = Metric("arpo.desktops", "gauge", "{desktop}", ENV_SERVER, "desktops by state", (STATE,))

EPISODE_OPERATION = Metric(
    "arpo.episode.operation",
    "histogram",
    "s",
    TRAINER,
    "operations of episodes as the trainer waits for them",
    (OPERATION, OUTCOME),
)
EPISODES_ENDED = Metric(
    "arpo.episodes",
    "counter",
    "{episode}",
    TRAINER,
    "episodes that ended, those of evaluations included",
    (RESULT,),
)
FAULTS = Metric("arpo.faults", "counter", "{fault}", TRAINER, "invalid episodes by code", (FAULT_CODE, FAULT))
STEP_SECONDS = Metric(
    "arpo.train_step.duration", "histogram", "s", TRAINER, "training steps by part", (PART,)
)
REPLAYED = Metric(
    "arpo.replay.injected",
    "counter",
    "{trajectory}",
    TRAINER,
    "failures that replay replaced by stored successes",
)
STEP_NUMBER = Metric("arpo.train_step.number", "gauge", "{step}", TRAINER, "the last finished training step")
SUCCESS = Metric(
    "arpo.success", "gauge", "1", TRAINER, "share of successes among the valid episodes of the last step"
)
MEAN_SCORE = Metric("arpo.score", "gauge", "1", TRAINER, "mean score of the last step's episodes")
STALENESS = Metric(
    "arpo.staleness",
    "gauge",
    "{version}",
    TRAINER,
    "policy versions that the last step's episodes were behind",
    (STATISTIC,),
)
ENV_UTILISATION = Metric(
    "arpo.env.utilisation",
    "gauge",
    "1",
    TRAINER,
    "share of the desktops that had an episode, over the last step",
)
ENGINE_UTILISATION = Metric(
    "arpo.engine.utilisation", "gauge", "1", TRAINER, "share of the last step in which the engine had work"
)

METRICS = tuple(value for value in list(globals().values()) if isinstance(value, Metric))
