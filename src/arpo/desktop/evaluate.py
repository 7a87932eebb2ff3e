"""OSWorld's `DesktopEnv.evaluate`, step for step, with typed failures.

As there: `postconfig` first; an infeasible task scores 1 only if the agent's last action was FAIL; FAIL on any other
task scores 0; metrics in order, joined by `and` (a 0 ends it, else the mean) or `or` (a 1 ends it, else the maximum);
a result getter that finds no file scores 0.

Two places are stricter about blame. Where OSWorld would crash because the file that a metric reads is not there, the
score is 0: not making the file is the agent's doing. Any other exception is `evaluator_failed`, never a score.

Invariant: what is returned is a finite number in [0, 1].
"""

from __future__ import annotations

import math

from arpo.desktop.evaluator_messages import MetricCall
from arpo.desktop.evaluators import EvaluatorError, EvaluatorPool, EvaluatorRefused, MissingFile
from arpo.desktop.getters import GetterConfigError, GetterContext, get
from arpo.desktop.setup import SetupContext, SetupError, run_setup
from arpo.desktop.sources import SourceError
from arpo.guest_client import GuestError
from arpo.protocol.problems import ProblemCode, ProblemError
from arpo.tasks.model import Task, Term

_FILE_GETTERS = frozenset({"vm_file", "content_from_vm_file", "cache_file", "list_directory"})


async def evaluate(
    task: Task, setup: SetupContext, getters: GetterContext, pool: EvaluatorPool, *, gave_up: bool
) -> float:
    """The task's score.

    gave_up: whether the agent's last action was `fail`.
    Raises ProblemError evaluator_failed (it names the evaluator) and TimeoutError.
    """
    evaluator = task.evaluator
    try:
        await run_setup(evaluator.postconfig, setup)
    except SetupError as error:
        raise _failed(f"postconfig: {error}") from error
    if evaluator.infeasible:
        return float(gave_up)
    if gave_up:
        return 0.0
    scores: list[float] = []
    for term in evaluator.terms():
        score = await _score(term, getters, pool)
        if evaluator.conj == "and" and score == 0.0:
            return 0.0
        if evaluator.conj == "or" and score == 1.0:
            return 1.0
        scores.append(score)
    return sum(scores) / len(scores) if evaluator.conj == "and" else max(scores)


async def _score(term: Term, context: GetterContext, pool: EvaluatorPool) -> float:
    try:
        result = await _get(term, "result", context)
    except MissingFile:
        return 0.0
    arguments = [result]
    if term.expected is not None:
        try:
            arguments.append(await _get(term, "expected", context))
        except MissingFile as error:
            raise _failed(f"{term.func}: expected ({term.expected['type']}): {error}") from error
    try:
        value = await pool.call(
            MetricCall(term.func, tuple(arguments), term.options, str(context.cache_dir)),
            timeout_s=context.timeout_s,
        )
    except EvaluatorRefused as error:
        raise _failed(f"{term.func}: {error}") from error
    except EvaluatorError as error:
        if result is None and term.result is not None and term.result["type"] in _FILE_GETTERS:
            return 0.0
        raise _failed(f"{term.func}: {error}") from error
    return _checked(term.func, value)


async def _get(term: Term, field: str, context: GetterContext) -> object:
    config = term.result if field == "result" else term.expected
    if config is None:
        raise _failed(f"{term.func}: no {field} getter is given")
    where = f"{term.func}: {field} ({config['type']})"
    try:
        return await get(config, context)
    except (EvaluatorError, GetterConfigError, GuestError, SourceError) as error:
        raise _failed(f"{where}: {error}") from error


def _checked(name: str, value: object) -> float:
    """The metric's value as a score. OSWorld's metrics return numbers, booleans and numpy scalars."""
    try:
        score = float(value)  # type: ignore[arg-type] # anything may come; what is no number is refused
    except (TypeError, ValueError) as error:
        raise _failed(f"{name}: returned {value!r:.100}, not a number") from error
    if not math.isfinite(score) or not -1e-6 <= score <= 1 + 1e-6:
        raise _failed(f"{name}: returned {score}, not a score between 0 and 1")
    return min(max(score, 0.0), 1.0)


def _failed(detail: str) -> ProblemError:
    return ProblemError(ProblemCode.EVALUATOR_FAILED, detail)
