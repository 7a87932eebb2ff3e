"""Taking imported trajectories from the inbox into the buffer.

Invariant: an entry is taken in once; a run that goes on from a checkpoint made before that takes it in again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from arpo.protocol.problems import ConfigError
from arpo.replay.buffer import ReplayBuffer
from arpo.replay.errors import ReplayError
from arpo.replay.folder import InboxEntry, ReplayFolder
from arpo.replay.index import Stored
from arpo.trajectory import Trajectory
from arpo.trajectory.store import ImageSource


class TokenLogprobs(Protocol):
    """What knows the policy (the learner)."""

    def token_logprobs(self, trajectories: Sequence[Trajectory], images: ImageSource) -> list[list[float]]:
        """For each trajectory the log-prob of every token with `loss_mask`, under the policy as it is."""


def take_in(
    folder: ReplayFolder,
    buffer: ReplayBuffer,
    learner: TokenLogprobs,
    images: ImageSource,
    *,
    success_above: float,
    tokenizer: str,
    policy_version: int,
    step: int,
) -> int:
    """Store every trajectory of the inbox that was not taken in yet; returns how many.

    One that a policy sampled keeps the log-probs it was sampled with. One that nobody sampled gets those of the
    policy as it is now: its importance weight is 1 today, and later what training has changed since. Ages
    count from `policy_version`, as the versions of another run say nothing here. Raises ConfigError for ids of
    another tokenizer and for what is no success here, ReplayError for a damaged row or a missing screenshot.
    """
    waiting = [entry for entry in folder.inbox() if entry.stored.sha256 not in buffer.taken]
    for entry in waiting:
        source = entry.stored.sha256
        if any(one.sha256 == source for one in buffer.stored):
            buffer.take(source, None)
            continue
        trajectory, sha256 = _checked(folder, entry, images, success_above, tokenizer), source
        if trajectory.sampler == "script":
            trajectory = _with_logprobs(trajectory, learner.token_logprobs([trajectory], images)[0])
            sha256 = folder.rows.put(trajectory)
        stored = Stored.of(
            trajectory,
            sha256,
            policy_version=policy_version,
            step=step,
            stored_at=entry.stored.stored_at,
            origin="import",
        )
        buffer.take(source, stored)
    return len(waiting)


def _checked(
    folder: ReplayFolder, entry: InboxEntry, images: ImageSource, success_above: float, tokenizer: str
) -> Trajectory:
    """The trajectory of an entry, if it may be taken in; raises what `take_in` does."""
    name = f"imported trajectory {entry.stored.episode_id}"
    path = folder.inbox_path(entry.stored.sha256)
    if entry.tokenizer != tokenizer:
        raise ConfigError(
            f"{name} has token ids of another tokenizer than the policy's; "
            f"fix: remove {path}, or use the model.path it was made with"
        )
    trajectory = folder.rows.get(entry.stored.sha256)
    if not trajectory.succeeded(success_above):
        raise ConfigError(
            f"{name} has score {trajectory.score}, no success with replay.success_above={success_above}; "
            f"fix: remove {path}, or set a lower replay.success_above"
        )
    try:
        for image in trajectory.images:
            images(image.sha256)
    except OSError as error:
        raise ReplayError(f"{name} lacks a screenshot: {error}; fix: import it again") from error
    return trajectory


def _with_logprobs(trajectory: Trajectory, sampled: Sequence[float]) -> Trajectory:
    """The trajectory with these log-probs at its sampled positions."""
    values = iter(sampled)
    logprobs = [next(values) if wanted else 0.0 for wanted in trajectory.loss_mask]
    return trajectory.model_copy(update={"logprobs": logprobs})
