"""Waiting for another process, but not for ever."""

import threading
import time
from concurrent.futures import Future

import pytest

from arpo.rollout.engines.vllm.bounded import bounded


def test_what_ends_in_time_is_returned_or_raised():
    assert bounded(lambda: 3, Future(), 5) == 3
    with pytest.raises(OSError, match="away"):
        bounded(_raising(OSError("away")), _failed(OSError("away")), 5)


def test_what_does_not_end_is_left_behind():
    blocked = threading.Event()
    began = time.monotonic()
    with pytest.raises(TimeoutError, match=r"0\.2 s"):
        bounded(lambda: blocked.wait(30), Future(), 0.2)
    assert time.monotonic() - began < 5
    blocked.set()


def test_a_failure_elsewhere_ends_the_waiting_at_once():
    blocked, failure = threading.Event(), Future()
    threading.Timer(0.1, failure.set_exception, [KeyError("dead")]).start()
    with pytest.raises(KeyError, match="dead"):
        bounded(lambda: blocked.wait(30), failure, 30)
    blocked.set()


def test_the_reason_is_raised_where_the_work_only_sees_its_connection_close():
    failure = Future()
    threading.Timer(0.3, failure.set_exception, [KeyError("dead")]).start()
    with pytest.raises(KeyError, match="dead"):
        bounded(_raising(RuntimeError("connection closed by peer")), failure, 30)


def _raising(error):
    def work():
        raise error

    return work


def _failed(error):
    failure = Future()
    failure.set_exception(error)
    return failure
