"""The learner: groups of trajectories in, a better policy out.

Invariant: what a step does depends on the weights, the optimizer state, the groups and the step's number
alone, so a learner restored from a checkpoint goes on as if it had never stopped.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from arpo.config.sections import LearnerSection, ReplaySection
from arpo.learner.batch import ImageSource, Row, chunks, forward_rows, rows_of, split_evenly
from arpo.learner.imitation import Imitator, sequence_logprobs
from arpo.learner.loss import policy_loss, replay_weight
from arpo.learner.meter import Meter
from arpo.learner.optimizer import MasterAdamW
from arpo.policy.load import Policy
from arpo.trajectory import GroupMember, Trajectory


class Learner:
    """Trains `policy` in place.

    temperature: the sampling temperature; ratios are between distributions at this temperature. A nucleus (top_p
    below 1) is the engine's alone: it shows as a difference between engine and learner log-probs.
    seed: of the order in which rows meet the optimizer when a step has several minibatches.
    """

    def __init__(
        self, policy: Policy, section: LearnerSection, replay: ReplaySection, *, temperature: float, seed: int
    ) -> None:
        self.policy = policy
        self.section = section
        self._replay = replay
        self._temperature = temperature
        self._seed = seed
        self._trained = {n: p for n, p in policy.model.named_parameters() if p.requires_grad}
        self._optimizer = MasterAdamW(
            self._trained,
            lr=section.lr,
            warmup_steps=section.warmup_steps,
            weight_decay=section.weight_decay,
            betas=section.betas,
            grad_clip=section.grad_clip,
        )
        self._steps = torch.zeros((), dtype=torch.long)
        self._imitator: Imitator | None = None

    def step(self, groups: Sequence[Sequence[GroupMember]], images: ImageSource) -> dict[str, float]:
        """One ARPO step over closed groups: `epochs` passes of `minibatches` optimizer steps.

        groups: of any sizes; a group of one, or with equal rewards, adds no gradient but its tokens count in
        the mean. images: gives the encoded screenshot with a sha256. Rows longer than `max_row_tokens` are
        left out and counted. Returns metrics. Raises ValueError for an invalid trajectory.
        """
        started = time.monotonic()
        self._imitator = None  # its moments are of no use from here on
        self.policy.model.train()
        section = self.section
        everything = rows_of(groups, section.format_coef)
        rows = [
            row
            for row in everything
            if len(row.trajectory.token_ids) <= section.max_row_tokens and row.sampled
        ]
        several = section.epochs * section.minibatches > 1
        # with one optimizer step π_old is π itself, and its forward pass is the only one that is needed
        old = self._logprobs(rows, images) if several else [None] * len(rows)
        pairs = list(zip(rows, old, strict=True))
        meter = Meter()
        rng = random.Random(f"{self._seed}/{int(self._steps)}")  # noqa: S311 - not a secret
        for _ in range(section.epochs):
            if section.minibatches > 1:
                rng.shuffle(pairs)
            for minibatch in split_evenly(pairs, section.minibatches):
                self._optimizer_step(minibatch, images, meter)
        self._steps += 1
        return {
            **meter.metrics(),
            "learner/rows": float(len(rows)),
            "learner/rows_replayed": float(sum(row.replayed for row in rows)),
            "learner/rows_too_long": float(
                sum(len(row.trajectory.token_ids) > section.max_row_tokens for row in everything)
            ),
            "learner/rows_without_signal": float(sum(row.advantage == 0 for row in rows)),
            "learner/seconds": time.monotonic() - started,
        }

    def imitate_step(
        self, demonstrations: Sequence[Trajectory], images: ImageSource, lr: float
    ) -> dict[str, float]:
        """One optimizer step of imitation: cross-entropy on the sampled tokens of demonstrations."""
        if self._imitator is None or self._imitator.lr != lr:
            self._imitator = Imitator(
                self.policy,
                lr=lr,
                grad_clip=self.section.grad_clip,
                temperature=self._temperature,
                micro_batch_rows=self.section.micro_batch_rows,
            )
        self.policy.model.train()
        metrics = self._imitator.step(demonstrations, images)
        self._optimizer.adopt()
        return metrics

    def sequence_logprobs(self, trajectories: Sequence[Trajectory], images: ImageSource) -> list[float]:
        """For each trajectory the log-prob of sampling all its sampled tokens under the policy as it is."""
        return sequence_logprobs(
            self.policy,
            trajectories,
            images,
            temperature=self._temperature,
            micro_batch_rows=self.section.micro_batch_rows,
        )

    @torch.no_grad()
    def token_logprobs(self, trajectories: Sequence[Trajectory], images: ImageSource) -> list[list[float]]:
        """For each trajectory the log-prob of every sampled token under the policy as it is."""
        logprobs: list[list[float]] = []
        for part in chunks(trajectories, self.section.micro_batch_rows):
            tokens = forward_rows(self.policy, part, images, self._temperature)
            logprobs += [row.tolist() for row in torch.split(tokens.logprobs, tokens.counts)]
        return logprobs

    def weights(self) -> Mapping[str, torch.Tensor]:
        """All parameters by name, for `Engine.push`. Views: the next step changes them, so copy before it."""
        return {name: parameter.detach() for name, parameter in self.policy.model.named_parameters()}

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs, as named tensors (views, not copies)."""
        return {
            "steps": self._steps,
            "model": dict(self.weights()),
            "optimizer": self._optimizer.state_dict(),
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Copy a state in. Raises KeyError or RuntimeError when it is of another model."""
        self._imitator = None
        self._steps.copy_(state["steps"])
        for name, parameter in self.policy.model.named_parameters():
            parameter.copy_(state["model"][name])
        self._optimizer.load_state_dict(state["optimizer"])

    @torch.no_grad()
    def _logprobs(self, rows: Sequence[Row], images: ImageSource) -> list[torch.Tensor | None]:
        """log π of every row's sampled tokens, under the weights as they are."""
        logprobs: list[torch.Tensor | None] = []
        for part in chunks(rows, self.section.micro_batch_rows):
            tokens = forward_rows(self.policy, [row.trajectory for row in part], images, self._temperature)
            logprobs += torch.split(tokens.logprobs, tokens.counts)
        return logprobs

    def _optimizer_step(
        self, minibatch: Sequence[tuple[Row, torch.Tensor | None]], images: ImageSource, meter: Meter
    ) -> None:
        """Backward over the micro-batches of one minibatch, then one update."""
        total_tokens = sum(len(row.sampled) for row, _ in minibatch)
        # neighbours of similar length waste little on padding; the sum over tokens does not depend on the
        # order
        by_length = sorted(minibatch, key=lambda pair: len(pair[0].trajectory.token_ids))
        for part in chunks(by_length, self.section.micro_batch_rows):
            rows = [row for row, _ in part]
            tokens = forward_rows(self.policy, [row.trajectory for row in rows], images, self._temperature)
            log_pi = tokens.logprobs
            log_pi_old = torch.cat(
                [
                    log_pi_of_row.detach() if old is None else old
                    for log_pi_of_row, (_, old) in zip(torch.split(log_pi, tokens.counts), part, strict=True)
                ]
            )
            behaviour = torch.cat([row.behaviour for row in rows]).to(log_pi.device)
            replayed = _per_token([float(row.replayed) for row in rows], tokens.counts, log_pi).bool()
            weight = torch.ones_like(log_pi_old)
            if self._replay.importance == "truncated":
                truncated = replay_weight(log_pi_old, behaviour, self._replay.importance_cap)
                weight = torch.where(replayed, truncated, weight)
            result = policy_loss(
                log_pi,
                log_pi_old,
                _per_token([row.advantage for row in rows], tokens.counts, log_pi),
                weight,
                section=self.section,
                total_tokens=total_tokens,
            )
            result.loss.backward()  # type: ignore[no-untyped-call]
            self._optimizer.accumulate()
            meter.loss(result.loss)
            for name, values in (result.tokens | {"entropy": tokens.entropy}).items():
                meter.tokens(name, values)
            meter.tokens("replay_weight", weight[replayed])
            meter.tokens("engine_logprob_gap", (log_pi_old - behaviour).abs()[~replayed])
        meter.optimizer_step(self._optimizer.step(), total_tokens)


def _per_token(values: Sequence[float], counts: Sequence[int], like: torch.Tensor) -> torch.Tensor:
    """One value a row → one value a token."""
    repeats = torch.tensor(counts, device=like.device)
    return torch.tensor(values, device=like.device, dtype=like.dtype).repeat_interleave(repeats)
