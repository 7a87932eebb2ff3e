"""Tokens per second and peak memory of the learner's step on this machine's CPU, against padded rows on plain transformers.

    OMP_NUM_THREADS=1 python benchmarks/learner.py                   # Qwen's vocabulary on a small model; minutes
    OMP_NUM_THREADS=1 python benchmarks/learner.py --shape compute   # a 7B model's share of work in the output head
    OMP_NUM_THREADS=1 python benchmarks/learner.py --profile         # where the learner's time goes

Both sides (`Learner.step` and `plain_hf.PlainHF`) start from the same weights and take the same step on the same
trajectories (`random_policy`); before anything is timed, every parameter's gradient must agree, or the run fails.
Then they take steps in turn. Each learner step begins without any picture's features, as if all screenshots were new.

Tokens are those of the trajectories; padding does not count. Memory is measured in a process of each side: `tensors`
is the peak of all tensor memory in a step as torch's allocator reports it, weights and optimizer state included;
`process` is the peak resident size, with Python and all libraries.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from statistics import median
from typing import Protocol

import torch
from measuring import cpu_name, in_a_process, positive
from plain_hf import PlainHF
from random_policy import Mix, Shape, describe, random_policy, trajectories
from torch.profiler import ProfilerActivity, profile

from arpo.config.sections import LearnerSection, ReplaySection
from arpo.learner.learner import Learner
from arpo.learner.rows import rows_of
from arpo.learner.sharding import local
from arpo.policy.load import Policy
from arpo.trajectory import GroupMember

_VISION = {
    "vision_hidden": 64,
    "vision_intermediate": 128,
    "vision_depth": 2,
    "vision_heads": 4,
    "vision_full": (1,),
}
SHAPES = {
    # logits outweigh activations, as in a large model, because the vocabulary is Qwen's
    "vocabulary": Shape(64, 192, 2, 4, 2, 151_936, True, **_VISION),
    # the head has a tenth of the weights of all layers, as in a 7B model (8 %), because the vocabulary is small
    "compute": Shape(256, 1024, 6, 8, 2, 2_000, True, **_VISION),
    "tiny": Shape(32, 64, 1, 2, 1, 3_000, True, **_VISION),
}
MIXES = {
    "gui": Mix(groups=2, members=4, turns=(4, 16), reply=(4, 16), width=280, height=168),
    "tiny": Mix(groups=1, members=4, turns=(1, 3), reply=(2, 4), width=84, height=56),
}
LOGITS_CHUNK = 64
"""A sixteenth of the default, as screenshots here have a fraction of the tokens of real ones."""
GRADIENT_TOLERANCE = 2e-3
"""Largest difference of a parameter's gradient, relative to its norm; fp32 sums in another order are far below."""


@dataclass(frozen=True)
class Times:
    """Seconds of one step: on the clock, and on the CPU, which neighbours on the machine change least."""

    wall: float
    cpu: float


class Side(Protocol):
    """One way to take the step. Both sides are made from the same options, so they have the same input."""

    def step(self) -> None:
        """A whole training step."""

    def gradients(self) -> dict[str, torch.Tensor]:
        """Those of the first step, read back from Adam's first moment."""

    def resident(self) -> list[torch.Tensor]:
        """Every tensor that outlives a step."""


class Ours:
    """The learner."""

    def __init__(self, options: argparse.Namespace) -> None:
        policy, self.groups, self.pictures, self.section = _input(options, plain_attention=False)
        self.rows = rows_of(self.groups, self.section, policy.encoder).rows
        self._learner = Learner(policy, self.section, ReplaySection(), temperature=1.0, seed=0)
        self._model = policy.model

    def step(self) -> None:
        """See `Side`."""
        # as if all screenshots of the step were new
        self._learner.forget_pictures()
        self._learner.step(self.groups, self.pictures.__getitem__)

    def gradients(self) -> dict[str, torch.Tensor]:
        """See `Side`."""
        moments = self._learner.state_dict()["optimizer"]["adamw"]
        return {
            name: local(state["exp_avg"]) / (1 - self.section.betas[0]) for name, state in moments.items()
        }

    def resident(self) -> list[torch.Tensor]:
        """See `Side`."""
        moments = self._learner.state_dict()["optimizer"]["adamw"]
        states = [local(tensor) for state in moments.values() for tensor in state.values()]
        return [*(local(p.detach()) for p in self._model.parameters()), *self._model.buffers(), *states]


class Plain:
    """Its peer."""

    def __init__(self, options: argparse.Namespace) -> None:
        policy, groups, self._pictures, section = _input(options, plain_attention=True)
        self.rows = rows_of(groups, section, policy.encoder).rows
        if options.broken:
            self.rows[0] = replace(self.rows[0], advantage=-self.rows[0].advantage)
        self._beta1 = section.betas[0]
        self._peer = PlainHF(
            policy, section, micro_batch=options.micro_batch, pad_to_batch=options.pad_to_batch
        )
        self.padded_tokens = self._peer.padded_tokens(self.rows)
        self._model = policy.model

    def step(self) -> None:
        """See `Side`."""
        self._peer.step(self.rows, self._pictures.__getitem__)

    def gradients(self) -> dict[str, torch.Tensor]:
        """See `Side`."""
        state = self._peer.optimizer.state
        return {name: state[p]["exp_avg"] / (1 - self._beta1) for name, p in self._peer.trained.items()}

    def resident(self) -> list[torch.Tensor]:
        """See `Side`."""
        states = [tensor for state in self._peer.optimizer.state.values() for tensor in state.values()]
        return [*self._model.parameters(), *self._model.buffers(), *states]


SIDES: dict[str, Callable[[argparse.Namespace], Side]] = {"learner": Ours, "plain HF": Plain}


def main() -> None:
    """Measure and print."""
    options = _options()
    print(f"{cpu_name()}, {torch.get_num_threads()} torch thread(s), load average {os.getloadavg()[0]:.2f}")
    # torch has not computed anything yet, so that the process may be forked
    measured = () if options.profile or options.broken else SIDES
    memory = {side: in_a_process(_memory, side, options) for side in measured}
    ours, plain = Ours(options), Plain(options)
    useful = sum(len(row.token_ids) for row in ours.rows)
    print(f"{options.shape}: {asdict(SHAPES[options.shape])}\n{describe(ours.groups)}")
    print(
        f"plain HF: micro-batches of {options.micro_batch}, {plain.padded_tokens} positions, "
        f"{100 * (1 - useful / plain.padded_tokens):.0f} % of them padding; learner: packed rows of at most "
        f"{ours.section.max_row_tokens} tokens, logits of {ours.section.logits_chunk} at a time"
    )
    ours.step()
    plain.step()
    print(
        f"gradients agree, largest relative difference {_difference(ours.gradients(), plain.gradients()):.1e}"
    )
    if options.profile:
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            ours.step()
        print(
            profiler.key_averages().table(
                sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=40
            )
        )
        return
    _report(useful, _alternate({"learner": ours, "plain HF": plain}, options.repeats), memory)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=sorted(SHAPES), default="vocabulary")
    parser.add_argument("--mix", choices=sorted(MIXES), default="gui")
    parser.add_argument("--micro-batch", type=positive, default=2, help="rows padded together (default 2)")
    parser.add_argument(
        "--pad-to-batch",
        action="store_true",
        help="pad to the longest row of the step, not of the micro-batch",
    )
    parser.add_argument("--repeats", type=positive, default=5, help="timed steps a side (default 5)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and trajectories")
    parser.add_argument(
        "--profile", action="store_true", help="print the learner's operators by time and end"
    )
    parser.add_argument(
        "--break",
        dest="broken",
        action="store_true",
        help="give the peer one wrong advantage, to see that the comparison of gradients fails",
    )
    return parser.parse_args()


def _input(
    options: argparse.Namespace, *, plain_attention: bool
) -> tuple[Policy, list[list[GroupMember]], dict[str, bytes], LearnerSection]:
    """A policy, groups, their pictures, and the settings that both sides obey."""
    shape = SHAPES[options.shape]
    policy = random_policy(
        shape,
        device=torch.device("cpu"),
        dtype=torch.float32,
        plain_attention=plain_attention,
        seed=options.seed,
    )
    groups, pictures = trajectories(policy, shape, MIXES[options.mix], seed=options.seed)
    longest = max(len(member.trajectory.token_ids) for group in groups for member in group)
    section = LearnerSection(
        # a pass of the learner holds as many tokens as one of the peer can
        max_row_tokens=options.micro_batch * longest,
        logits_chunk=LOGITS_CHUNK,
        grad_clip=1e9,
    )
    return policy, groups, pictures, section


def _difference(actual: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> float:
    """The largest difference of a parameter's gradient, relative to its norm. Ends the run if it is too large."""
    if actual.keys() != expected.keys():
        sys.exit(f"error: the sides train different parameters: {sorted(actual.keys() ^ expected.keys())}")
    # a gradient that is nearly zero everywhere is all rounding
    floor = 1e-4 * max(float(value.norm()) for value in expected.values())
    worst, name = max(
        (float((actual[name] - value).norm()) / max(floor, float(value.norm())), name)
        for name, value in expected.items()
    )
    if not worst <= GRADIENT_TOLERANCE:
        sys.exit(
            f"error: gradients differ by {worst:.1e} of their norm in {name}: the sides do different work"
        )
    return worst


def _alternate(sides: Mapping[str, Side], repeats: int) -> dict[str, list[Times]]:
    """Times of every step; sides take turns, each first every other time."""
    times: dict[str, list[Times]] = {name: [] for name in sides}
    order = list(sides)
    for _ in range(repeats):
        for name in order:
            wall, cpu = time.monotonic(), time.process_time()
            sides[name].step()
            times[name].append(Times(time.monotonic() - wall, time.process_time() - cpu))
        order.reverse()
    return times


def _memory(name: str, options: argparse.Namespace) -> dict[str, int]:
    """Peak bytes of a side's step in this process: of tensors, and of the process."""
    side = SIDES[name](options)
    side.step()
    side.step()
    process = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in side.resident()}
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        side.step()
    # the allocator's own record of every allocation (+) and release (-), those inside operators too
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    peak = max(accumulate(event.nbytes() for event in events))
    return {"tensors": peak + sum(storage.nbytes() for storage in storages.values()), "process": process}


def _report(
    useful: int, times: Mapping[str, Sequence[Times]], memory: Mapping[str, Mapping[str, int]]
) -> None:
    header = ("tokens/s", "least", "most", "tokens/CPU s", "tensors MiB", "process MiB")
    print(f"\n{'':10}" + "".join(f"{title:>14}" for title in header))
    for side, values in times.items():
        speeds = [useful / value.wall for value in values]
        figures = [median(speeds), min(speeds), max(speeds), median(useful / value.cpu for value in values)]
        figures += [memory[side][key] / 2**20 for key in ("tensors", "process")]
        print(f"{side:10}" + "".join(f"{figure:>14.0f}" for figure in figures))
    pairs = list(zip(times["learner"], times["plain HF"], strict=True))
    wall = [plain.wall / ours.wall for ours, plain in pairs]
    cpu = [plain.cpu / ours.cpu for ours, plain in pairs]
    shares = [memory["learner"][key] / memory["plain HF"][key] for key in ("tensors", "process")]
    print(
        f"learner / plain HF: tokens/s {median(wall):.2f} (pairs {min(wall):.2f} to {max(wall):.2f}), tokens/CPU s "
        f"{median(cpu):.2f} ({min(cpu):.2f} to {max(cpu):.2f}), tensors {shares[0]:.2f}, process {shares[1]:.2f}; "
        f"load average {os.getloadavg()[0]:.2f}"
    )


if __name__ == "__main__":
    main()
