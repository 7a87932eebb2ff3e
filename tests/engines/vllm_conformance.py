"""The `vllm` engine does what every engine must. Run by `test_vllm_engine.py`, in an environment that has vLLM."""

import asyncio

import pytest

pytest.register_assert_rewrite("conformance")

from conformance import *  # noqa: E402, F403
from conformance import Subject  # noqa: E402
from vllm_kit import vllm_engine  # noqa: E402

from policy_kit import tiny_folder  # noqa: E402


@pytest.fixture(scope="module")
def engine():
    with vllm_engine(tiny_folder()) as engine:
        yield engine


@pytest.fixture
def subject(engine, policy):
    asyncio.run(engine.push(dict(policy.model.named_parameters()), 0))
    return Subject(engine, policy, splits=True)
