"""The learner: groups of trajectories in, a better policy out.

Invariant: what a step does depends on the weights, the optimizer state, the groups and the step's number
alone, so a learner restored from a checkpoint goes on as if it had never stopped, on as many ranks as there are
then.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, wait
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import torch

from arpo.config.sections import LearnerSection, ReplaySection
from arpo.learner import tensors
from arpo.learner.imitation import Imitator
from arpo.learner.loss import importance_weight, policy_loss, shares
from arpo.learner.meter import Meter
from arpo.learner.optimizer import AdamW
from arpo.learner.passes import Passes
from arpo.learner.ranks import Ranks, alone
from arpo.learner.rows import Row, rows_of, whole_row
from arpo.learner.sharding import ShardedPolicy
from arpo.policy.load import Policy
from arpo.trajectory import GroupMember, Trajectory
from arpo.trajectory.store import ImageSource

T = TypeVar("T")


class Learner:
    """Trains a policy, whose model it takes over and shards.

    temperature: the sampling temperature; ratios are between distributions at this temperature. A nucleus (top_p
    below 1) is the engine's alone: it shows as a difference between engine and learner log-probs.
    seed: of the order in which rows meet the optimizer when a step has several minibatches.
    ranks: the processes that train together; None: this one alone. Every rank makes a learner with the same
    arguments and then calls the same methods with the same arguments. images, where it is an argument, gives the
    encoded screenshot with a sha256; each rank asks for those of its own rows.
    """

    def __init__(
        self,
        policy: Policy,
        section: LearnerSection,
        replay: ReplaySection,
        *,
        temperature: float,
        seed: int,
        ranks: Ranks | None = None,
    ) -> None:
        self.policy = policy
        self.section = section
        self.ranks = ranks or alone(policy.device)
        self._replay = replay
        self._seed = seed
        self._model = ShardedPolicy(policy, section, self.ranks)
        self._passes = Passes(self._model, self.ranks, limit=section.max_row_tokens, temperature=temperature)
        self._optimizer = AdamW(
            self._model.trained,
            lr=section.lr,
            warmup_steps=section.warmup_steps,
            weight_decay=section.weight_decay,
            betas=section.betas,
            grad_clip=section.grad_clip,
            ranks=self.ranks,
        )
        self._steps = torch.zeros((), dtype=torch.long)
        self._reference = (
            {name: p.detach().clone() for name, p in self._model.trained.items()}
            if section.kl != "off"
            else None
        )
        self._imitator: Imitator | None = None
        self._saved: Future[None] | None = None

    def step(
        self, groups: Sequence[Sequence[GroupMember]], images: ImageSource, version: int | None = None
    ) -> dict[str, float]:
        """One ARPO step over closed groups: `epochs` passes of `minibatches` optimizer steps.

        groups: of any sizes; a group of one, or with equal rewards, adds no gradient but its tokens count in
        the mean. Trajectories longer than `max_row_tokens` are cut by the rule `learner.cut`, and counted.
        version: the policy's; only what it sampled itself says whether engine and learner agree. None: all did.
        Returns metrics. Raises ValueError for an invalid trajectory.
        """
        started = time.monotonic()
        self._imitator = None  # its moments are of no use from here on
        self.policy.model.train()
        section = self.section
        batch = rows_of(groups, section, self.policy.encoder, version)
        rows = batch.rows
        several = section.epochs * section.minibatches > 1
        # with one optimizer step π_old is π itself, and its forward pass is the only one that is needed
        old = self._passes.logprobs(rows, images) if several else None
        reference = self._reference_logprobs(rows, images)
        meter = Meter()
        order = list(range(len(rows)))
        rng = random.Random(f"{self._seed}/{int(self._steps)}")  # noqa: S311 - not a secret
        for _ in range(section.epochs):
            if section.minibatches > 1:
                rng.shuffle(order)
            for minibatch in split_evenly(order, section.minibatches):
                self._optimizer_step(rows, minibatch, old, reference, images, meter)
        self._steps += 1
        metrics = {**meter.metrics(self.ranks), **batch.metrics()}
        gap = metrics.get("learner/engine_logprob_gap", 0.0)
        return metrics | {
            "learner/engine_logprob_gap_alarm": float(not gap <= section.logprob_gap_alarm),
            "learner/seconds": time.monotonic() - started,
        }

    def imitate_step(
        self, demonstrations: Sequence[Trajectory], images: ImageSource, lr: float
    ) -> dict[str, float]:
        """One optimizer step of imitation: cross-entropy on the sampled tokens of demonstrations."""
        if self._imitator is None or self._imitator.lr != lr:
            self._imitator = Imitator(self._passes, lr=lr, grad_clip=self.section.grad_clip)
        self.policy.model.train()
        return self._imitator.step(demonstrations, images)

    def token_logprobs(self, trajectories: Sequence[Trajectory], images: ImageSource) -> list[list[float]]:
        """For each trajectory the log-prob of every sampled token under the policy as it is."""
        rows = [whole_row(trajectory) for trajectory in trajectories]
        return [row.tolist() for row in self._passes.logprobs(rows, images)]

    def sequence_logprobs(self, trajectories: Sequence[Trajectory], images: ImageSource) -> list[float]:
        """For each trajectory the log-prob of sampling all its sampled tokens under the policy as it is."""
        return [sum(row) for row in self.token_logprobs(trajectories, images)]

    def weights(self, *, wanted: bool = False) -> Mapping[str, torch.Tensor]:
        """All parameters by name, whole, adapters folded in, for `Engine.push`: on the first rank, and on others that
        want them; empty elsewhere. Every rank must call it.

        On one rank they are views: the next step changes them, so copy before it.
        """
        weights = self._model.weights(wanted=wanted)
        if self.ranks.device.type == "cuda":
            torch.cuda.empty_cache()  # an engine on this GPU is about to need what the step has left unused
        return weights

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs, as named tensors, sharded over the ranks (views, not copies)."""
        state = {
            "steps": self._steps,
            "model": {name: p.detach() for name, p in self.policy.model.named_parameters()},
            "optimizer": self._optimizer.state_dict(),
        }
        return state | ({"reference": self._reference} if self._reference is not None else {})

    def begin_save(self, folder: Path) -> Future[None]:
        """Copy the state, then write it in the background; see `tensors.begin_save`. Every rank must call it."""
        if self._saved is not None:
            # ranks end a save one after the other, and the next may not begin before this one has
            wait([self._saved])
        self._saved = tensors.begin_save(self.state_dict(), folder, self.ranks.saving)
        return self._saved

    def load(self, folder: Path) -> None:
        """Take the state that any number of ranks wrote. Every rank must call it.

        Raises what `tensors.load` raises; the state may then be a mixture.
        """
        self._imitator = None
        tensors.load(self.state_dict(), folder, self.ranks.saving)
        self.forget_pictures()

    def forget_pictures(self) -> None:
        """Encode every screenshot anew from here on: the vision tower's weights have changed, or time is measured."""
        self._model.forget_pictures()

    @torch.no_grad()
    def _reference_logprobs(self, rows: Sequence[Row], images: ImageSource) -> list[torch.Tensor] | None:
        """log π_ref of every row's sampled tokens; None when no divergence is wanted."""
        if self._reference is None:
            return None
        if int(self._steps) == 0:  # training begins: with what imitation has made of the policy
            for name, parameter in self._model.trained.items():
                self._reference[name].copy_(parameter)
        with self._model.exchanged(self._reference):
            return self._passes.logprobs(rows, images)

    def _optimizer_step(
        self,
        rows: Sequence[Row],
        minibatch: Sequence[int],
        old: Sequence[torch.Tensor] | None,
        reference: Sequence[torch.Tensor] | None,
        images: ImageSource,
        meter: Meter,
    ) -> None:
        """Backward over the passes of one minibatch, then one update."""
        chosen = [rows[index] for index in minibatch]
        share = shares([len(row.sampled) for row in chosen], self.section)
        for indices, tokens in self._passes.run(chosen, images):
            own = [chosen[index] for index in indices]
            log_pi = tokens.logprobs

            def stored(values: Sequence[torch.Tensor] | None) -> torch.Tensor | None:
                """What was computed before the minibatch, of the tokens of this pass."""
                if values is None:
                    return None
                parts = [values[minibatch[index]] for index in indices]  # noqa: B023 - called in the loop
                return torch.cat(parts).to(log_pi) if parts else log_pi.detach()  # noqa: B023

            log_pi_old = stored(old)
            if log_pi_old is None:
                log_pi_old = log_pi.detach()
            behaviour = torch.cat([row.behaviour for row in own]).to(log_pi) if own else log_pi_old
            replayed = tokens.spread([row.replayed for row in own])
            # in a context that was cut, what the engine said of these tokens is no behaviour log-prob
            comparable = tokens.spread([row.same_context for row in own])
            weight = self._weight(log_pi_old, behaviour, replayed, comparable)
            result = policy_loss(
                log_pi,
                log_pi_old,
                tokens.spread([row.advantage for row in own]),
                weight,
                tokens.spread([share[index] for index in indices]),
                section=self.section,
                log_pi_ref=stored(reference),
            )
            result.loss.backward()  # type: ignore[no-untyped-call]
            self._optimizer.accumulate()
            meter.loss(result.loss)
            for name, values in (result.tokens | {"entropy": tokens.entropy}).items():
                meter.tokens(name, values)
            meter.tokens("replay_weight", weight[replayed])
            meter.tokens("fresh_weight", weight[~replayed])
            own_words = comparable & ~replayed & ~tokens.spread([row.stale for row in own])
            meter.tokens("engine_logprob_gap", (log_pi_old - behaviour).abs()[own_words])
        meter.optimizer_step(self._optimizer.step())

    def _weight(
        self,
        log_pi_old: torch.Tensor,
        behaviour: torch.Tensor,
        replayed: torch.Tensor,
        comparable: torch.Tensor,
    ) -> torch.Tensor:
        """Importance weight of every token [N], by the rule for fresh and the one for replayed ones."""
        weight = torch.ones_like(log_pi_old)
        for rules, chosen in ((self.section, ~replayed), (self._replay, replayed)):
            if rules.importance == "truncated":
                truncated = importance_weight(log_pi_old, behaviour, rules.importance_cap)
                weight = torch.where(chosen & comparable, truncated, weight)
        return weight


def split_evenly(items: Sequence[T], parts: int) -> list[Sequence[T]]:
    """`parts` consecutive parts whose sizes differ by at most one; empty ones are left out."""
    bounds = [len(items) * part // parts for part in range(parts + 1)]
    return [items[a:b] for a, b in pairwise(bounds) if a < b]
