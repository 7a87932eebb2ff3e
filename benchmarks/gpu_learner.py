"""Tokens per second, MFU and peak memory of the learner on one GPU, against padded rows on plain transformers.

    python benchmarks/gpu_learner.py                 # Qwen2.5-VL-3B's shape, 16 screenshots a trajectory; minutes
    python benchmarks/gpu_learner.py --shape 7b      # low-rank adapters, as full weights do not fit one GPU
    python benchmarks/gpu_learner.py --shape tiny    # also on a CPU: what is left of it without a GPU

Weights are random and made on the device, nothing is downloaded. Each side runs in a process of its own. The peer may
run out of memory; then it is tried with half the screenshots until it fits, and the learner is measured there, too.
The last line is JSON; --out writes it to a file as well. Exit code 1: the learner did not fit, or the gradients'
norms differ.

MFU counts useful work only, recomputed activations and padding not: per token of a trajectory 6·N FLOPs, N being the
weights of the language model's layers (4·N with adapters, whose frozen weights need no gradient); 6·hidden·vocabulary
per sampled token; 6·layers·L²·heads·d for the causal attention of a trajectory of L tokens; the vision tower's forward
pass once per distinct screenshot. Of a GPU whose peak is not in `PEAK_FLOPS` no MFU is given.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from measuring import ProcessEnded, cpu_name, in_a_process, positive
from plain_hf import PlainHF
from random_policy import CELL, MERGE, PATCH, Mix, Shape, describe, random_policy, trajectories

from arpo.config.sections import LearnerSection, ReplaySection
from arpo.learner.learner import Learner
from arpo.learner.rows import rows_of
from arpo.trajectory import GroupMember

_VISION = {
    "vision_hidden": 1280,
    "vision_intermediate": 3420,
    "vision_depth": 32,
    "vision_heads": 16,
    "vision_full": (7, 15, 23, 31),
}
SHAPES = {
    "3b": Shape(2048, 11_008, 36, 16, 2, 151_936, True, **_VISION),
    "7b": Shape(3584, 18_944, 28, 28, 4, 152_064, False, **_VISION),
    "tiny": Shape(64, 128, 2, 4, 2, 4_000, True, 64, 128, 2, 4, (1,)),
}
PEAK_FLOPS = {"H100 80GB HBM3": 989e12, "H200": 989e12, "A100": 312e12}
"""Dense bf16, by a part of the device's name."""
ADAPTER_RANK = {"3b": 0, "7b": 64, "tiny": 0}
NORM_TOLERANCE = {"bfloat16": 0.1, "float32": 1e-3}
"""Largest relative difference of the gradients' norms; bf16 rounds in other places on the two sides."""
_WINDOW = (112 // PATCH) ** 2
"""Patches that a windowed vision block's attention sees."""


def main() -> None:
    """Measure both sides and print."""
    options = _options()
    results = []
    learner = _measured("learner", options, options.screenshots)
    results.append(learner)
    screenshots = options.screenshots
    while (peer := _measured("plain HF", options, screenshots))["out_of_memory"] and screenshots > 1:
        results.append(peer)
        screenshots //= 2
    results.append(peer)
    if screenshots != options.screenshots and not peer["out_of_memory"]:
        learner = _measured("learner", options, screenshots)
        results.append(learner)
    document: dict[str, Any] = {"torch": torch.__version__, "results": results}
    comparable = not learner["out_of_memory"] and not peer["out_of_memory"]
    if comparable:
        document["compared"] = {
            "screenshots": screenshots,
            "tokens_per_s_ratio": learner["tokens_per_s"] / peer["tokens_per_s"],
            "peak_ratio": learner["peak_gib"] / peer["peak_gib"],
            "grad_norm_difference": abs(learner["grad_norm"] / peer["grad_norm"] - 1),
        }
    line = json.dumps(document)
    if options.out:
        options.out.write_text(line + "\n", encoding="utf-8")
    print(line)
    if results[0]["out_of_memory"]:
        sys.exit("error: the learner ran out of memory")
    if comparable and not document["compared"]["grad_norm_difference"] <= NORM_TOLERANCE[learner["dtype"]]:
        sys.exit("error: the gradients' norms differ: the sides do different work")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=sorted(SHAPES), help="default: 3b on a GPU, tiny without one")
    parser.add_argument("--screenshots", type=positive, default=16, help="in each trajectory (default 16)")
    parser.add_argument(
        "--pixels", type=_pixels, help="WIDTHxHEIGHT of a screenshot (default 1920x1080, tiny: 112x56)"
    )
    parser.add_argument("--members", type=positive, default=4, help="trajectories of a step (default 4)")
    parser.add_argument("--micro-batch", type=positive, default=1, help="the peer's rows at once (default 1)")
    parser.add_argument("--adapters", type=int, help="rank of low-rank adapters, 0: full (default 64 for 7b)")
    parser.add_argument("--weights", choices=["fp32", "kahan"], default="fp32", help="learner.weights")
    parser.add_argument("--dtype", choices=sorted(NORM_TOLERANCE), help="default: bfloat16 on a GPU")
    parser.add_argument("--steps", type=positive, default=3, help="timed steps at most (default 3)")
    parser.add_argument(
        "--seconds", type=float, default=90.0, help="no step begins after this long (default 90)"
    )
    parser.add_argument("--out", type=Path, help="file for the JSON line")
    return parser.parse_args()


def _pixels(text: str) -> tuple[int, int]:
    """As the model sees it: sides rounded to whole image tokens."""
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None:
        raise argparse.ArgumentTypeError("must look like 1920x1080")
    width, height = (max(2, round(int(side) / CELL)) * CELL for side in match.groups())
    return width, height


def _measured(side: str, options: argparse.Namespace, screenshots: int) -> dict[str, Any]:
    """One side in a process of its own, printed."""
    try:
        result = in_a_process(_measure, side, options, screenshots)
    except ProcessEnded as ended:
        if not ended.killed:
            sys.exit(f"error: {side}: {ended}")
        result = {"side": side, "screenshots": screenshots, "out_of_memory": True, "hardware": "killed"}
    figures = "out of memory"
    if not result["out_of_memory"]:
        mfu = "" if result["mfu"] is None else f", MFU {100 * result['mfu']:.1f} %"
        figures = f"{result['tokens_per_s']:.0f} tokens/s{mfu}, peak {result['peak_gib']:.2f} GiB"
    print(f"{side}, {screenshots} screenshots a trajectory: {figures} ({result['hardware']})", flush=True)
    return result


def _measure(side: str, options: argparse.Namespace, screenshots: int) -> dict[str, Any]:
    """Steps of one side in this process."""
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    name = options.shape or ("3b" if cuda else "tiny")
    dtype = options.dtype or ("bfloat16" if cuda else "float32")
    rank = ADAPTER_RANK[name] if options.adapters is None else options.adapters
    width, height = options.pixels or _pixels("112x56" if name == "tiny" else "1920x1080")
    mix = Mix(1, options.members, (screenshots, screenshots), (40, 120), width, height)
    shape = SHAPES[name]
    hardware = torch.cuda.get_device_name(device) if cuda else cpu_name()
    result: dict[str, Any] = {
        "side": side,
        "hardware": hardware,
        "shape": name,
        "dtype": dtype,
        "adapters": rank,
        "weights": options.weights if side == "learner" else dtype,
        "screenshots": screenshots,
        "screenshot_tokens": mix.screenshot_tokens,
    }
    try:
        policy = random_policy(
            shape,
            device=device,
            dtype=getattr(torch, dtype),
            plain_attention=side == "plain HF",
            lora_rank=rank,
        )
        groups, pictures = trajectories(policy, shape, mix)
        longest = max(len(member.trajectory.token_ids) for member in groups[0])
        section = LearnerSection(
            max_row_tokens=max(65_536, longest), weights=options.weights if dtype == "bfloat16" else "fp32"
        )
        step: Callable[[], float]
        if side == "learner":
            learner = Learner(policy, section, ReplaySection(), temperature=1.0, seed=0)

            def step() -> float:
                # as if all screenshots of the step were new
                learner.forget_pictures()
                return learner.step(groups, pictures.__getitem__)["learner/grad_norm"]
        else:
            peer = PlainHF(policy, section, micro_batch=options.micro_batch)
            rows = rows_of(groups, section, policy.encoder).rows

            def step() -> float:
                return peer.step(rows, pictures.__getitem__)

        print(f"{side}, {name}: {describe(groups)}", flush=True)
        norm = step()
        seconds = _timed(step, device, options)
    except torch.OutOfMemoryError as error:
        return result | {"out_of_memory": True, "reason": str(error).splitlines()[0]}
    tokens = sum(len(member.trajectory.token_ids) for member in groups[0])
    flops = useful_flops(shape, mix, groups, len(pictures), adapters=rank > 0)
    peak = next((flops for part, flops in PEAK_FLOPS.items() if cuda and part in hardware), None)
    used = torch.cuda.max_memory_allocated(device) if cuda else _process_peak()
    return result | {
        "out_of_memory": False,
        "grad_norm": norm,
        "seconds": seconds,
        "tokens": tokens,
        "tokens_per_s": tokens / median(seconds),
        "useful_flops": flops,
        "mfu": flops / median(seconds) / peak if peak else None,
        "peak_gib": used / 2**30,
        "peak_of": "memory that torch allocated on the GPU" if cuda else "resident memory of the process",
    }


def _timed(step: Callable[[], float], device: torch.device, options: argparse.Namespace) -> list[float]:
    """Seconds of each step."""
    begun = time.monotonic()
    seconds: list[float] = []
    while len(seconds) < options.steps and (not seconds or time.monotonic() - begun < options.seconds):
        started = time.monotonic()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.monotonic() - started)
    return seconds


def useful_flops(
    shape: Shape, mix: Mix, groups: Sequence[Sequence[GroupMember]], pictures: int, *, adapters: bool
) -> float:
    """FLOPs of a step that any implementation needs; see the formula at the top."""
    h, depth, vh = shape.hidden, shape.vision_depth, shape.vision_hidden
    kv = shape.kv_heads * (h // shape.heads)
    layer = h * (2 * h + 2 * kv) + 3 * h * shape.intermediate
    rows = [member.trajectory for group in groups for member in group]
    passes = 4 if adapters else 6
    text = sum(
        passes * shape.layers * layer * len(row.token_ids)
        + passes * h * shape.vocabulary * sum(row.loss_mask)
        + 6 * shape.layers * len(row.token_ids) ** 2 * h
        for row in rows
    )
    patches = mix.screenshot_tokens * MERGE**2
    block = 4 * vh * vh + 3 * vh * shape.vision_intermediate
    merged = MERGE**2 * vh
    seen = len(shape.vision_full) * patches + (depth - len(shape.vision_full)) * _WINDOW
    picture = (
        2 * patches * depth * block
        + 4 * patches * seen * vh
        + 2 * mix.screenshot_tokens * (merged * merged + merged * h)
    )
    return text + pictures * picture


def _process_peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
