import pickle

import pytest

torch = pytest.importorskip("torch")

from arpo.trainer.launch.packed import pack, unpack  # noqa: E402


def test_weights_travel_without_a_changed_bit():
    torch.manual_seed(0)
    weights = {
        "bf16": torch.randn(3, 5, dtype=torch.bfloat16),
        "fp32": torch.randn(7),
        "transposed": torch.randn(4, 6).T,
        "scalar": torch.tensor(2.5),
        "parameter": torch.nn.Parameter(torch.randn(2, 2)),
    }
    there = unpack(pickle.loads(pickle.dumps(pack(weights))))
    assert list(there) == list(weights)
    for name, tensor in weights.items():
        assert there[name].dtype == tensor.dtype
        assert torch.equal(there[name], tensor)
