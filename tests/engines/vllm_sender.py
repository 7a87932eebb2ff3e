"""A sender is amid a broadcast when the worker dies, or stands still. Run by `test_vllm_engine.py`, with vLLM."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from arpo.rollout.engines.base import EngineUnusableError
from arpo.rollout.engines.vllm.weights import WeightSender

WORKER = """
import json, sys, time, torch
from arpo.rollout.engines.vllm.gloo import GlooInitInfo, _broadcast, _join
print("up", flush=True)
group = _join(GlooInitInfo(**json.loads(sys.stdin.readline())), 1)
print("joined", flush=True)
_broadcast(group, torch.empty(1 << 24))
print("one", flush=True)
time.sleep(120)
"""


@pytest.mark.parametrize(
    ("number", "reason"),
    [(signal.SIGKILL, "is gone"), (signal.SIGSTOP, "within 8 s")],
    ids=["killed", "stopped"],
)
def test_a_sender_leaves_a_broadcast_whose_other_end_is_lost(number, reason):
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert worker.stdout.readline() == "up\n"

    def control(call, arguments):
        if call == "init_weight_transfer_engine":
            worker.stdin.write(json.dumps(arguments["init_info"]) + "\n")
            worker.stdin.flush()
            assert worker.stdout.readline() == "joined\n"
        if call == "update_weights":
            assert worker.stdout.readline() == "one\n"
            os.kill(worker.pid, number)
            worker.wait()
            raise EngineUnusableError("the worker is gone")

    weights = {f"weight {n}": torch.zeros(1 << 24) for n in range(4)}
    sender = WeightSender("gloo", control, workers=1, dtype=torch.float32, timeout_s=8)
    began = time.monotonic()
    try:
        with pytest.raises(EngineUnusableError, match=reason):
            sender.send(weights)
        took = time.monotonic() - began
        print(f"left after {took:.1f} s")
        assert took < 30
    finally:
        worker.kill()
