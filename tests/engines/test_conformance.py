"""The `hf` engine does what every engine must."""

import asyncio

import pytest

pytest.register_assert_rewrite("conformance")

from conformance import *  # noqa: E402, F403
from conformance import MAX_BATCH, Subject  # noqa: E402

from arpo.rollout.engines.hf import HFEngine  # noqa: E402


@pytest.fixture
def subject(policy):
    engine = HFEngine(policy, MAX_BATCH)
    yield Subject(engine, policy, splits=False)
    asyncio.run(engine.close())
