"""What a sender does when the worker dies amid a broadcast, or stands still, and whom it does not wait for. Run by
`test_vllm_engine.py`, with vLLM.
"""

import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

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


def test_a_sender_by_ipc_waits_for_no_other_rank_and_has_room_for_every_parameter(monkeypatch):
    """There is no GPU here: what vLLM would put into its memory is looked at instead."""
    from vllm.distributed.weight_transfer import ipc_engine

    from arpo.rollout.engines.vllm import ipc
    from arpo.rollout.engines.vllm.weights import _Client, _source

    def nobody(*_):
        raise AssertionError("it talks to the learner's other ranks")

    def chunks(iterator, gpu_uuid, post_iter_func, buffer_size_bytes):
        taken = []
        for name, tensor in iterator:
            size = tensor.numel() * tensor.element_size()
            assert size <= buffer_size_bytes
            if sum(sizes := [n for _, _, n in taken]) + size > buffer_size_bytes:
                yield chunk(taken, sizes)
                taken = []
            taken.append((name, list(tensor.shape), size))
        yield chunk(taken, [n for _, _, n in taken])

    def chunk(taken, sizes):
        names, shapes = [n for n, _, _ in taken], [s for _, s, _ in taken]
        return SimpleNamespace(
            names=names, shapes=shapes, dtype_names=["bfloat16"] * len(taken), tensor_sizes=sizes,
            ipc_handle={"GPU-0": ("handle",)},
        )  # fmt: skip

    class OnNoGpu(ipc.OwnGpuSender):
        def __init__(self, **arguments):
            self.__dict__.update(arguments, gpu_uuid="GPU-0")

    for name in ("all_gather_object", "barrier"):
        monkeypatch.setattr(torch.distributed, name, nobody)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.cuda, "ipc_collect", lambda: None)
    monkeypatch.setattr(ipc_engine, "packed_ipc_producer", chunks)
    monkeypatch.setattr(ipc, "WEIGHTS_AT_ONCE_BYTES", 64)
    monkeypatch.setattr(ipc, "OwnGpuSender", OnNoGpu)

    calls = []
    source = _source(torch.device("cpu"), torch.bfloat16)
    sender = ipc.own_gpu_sender(_Client(lambda *call: calls.append(call)), source)
    source.weights = {"small": torch.zeros(16), "embedding": torch.zeros(40, 2), "last": torch.zeros(30)}
    sender.send_weights()

    first, second, *updates, last = (name for name, _ in calls)
    assert [first, second, last] == [
        "init_weight_transfer_engine",
        "start_weight_update",
        "finish_weight_update",
    ]
    assert set(updates) == {"update_weights"}
    sent = [arguments["update_info"] for _, arguments in calls[2:-1]]
    assert [update["names"] for update in sent] == [["small"], ["embedding"], ["last"]], "160 bytes at a time"
    assert all(update["ipc_handles"] == {"GPU-0": ("handle",)} for update in sent)
