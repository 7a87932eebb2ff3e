"""Evaluator processes: reuse, crashes, cancellation, and desktop-env's metrics on real files."""

import asyncio
import csv
import json
import os
import signal
import subprocess
import sys
import time

import docx
import openpyxl
import pytest

from arpo.desktop.evaluator_messages import MAX_REPLY_VALUES, MetricCall
from arpo.desktop.evaluator_worker import _plain
from arpo.desktop.evaluators import EvaluatorError, EvaluatorPool


def hanging(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("a" * 60 + "b\n")
    return MetricCall("check_list", (str(file), {"expect": ["^(a+)+$"]}), {}, str(tmp_path))


def same(value):
    return MetricCall("exact_match", (value, {"expected": value}), {})


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def with_pool(scenario, **arguments):
    async def run():
        pool = EvaluatorPool(**arguments)
        try:
            return await scenario(pool)
        finally:
            await pool.close()

    return asyncio.run(run())


def only_worker(pool):
    (worker,) = pool._idle
    return worker.process.pid


def test_a_process_is_kept_for_the_next_call_and_ends_with_the_pool():
    async def scenario(pool):
        assert await pool.call(same("a"), timeout_s=20) == 1.0
        first = only_worker(pool)
        assert await pool.call(same("b"), timeout_s=20) == 1.0
        assert only_worker(pool) == first
        return first

    assert not alive(with_pool(scenario))


def test_a_value_of_very_many_parts_is_an_error_and_no_reply():
    most = MAX_REPLY_VALUES - 1  # and the list itself
    assert len(_plain([[]] * most)) == most
    with pytest.raises(ValueError, match="more than 250000 values"):
        _plain([[]] * (most + 1))


def test_a_process_that_dies_fails_its_call_only(tmp_path):
    async def scenario(pool):
        await pool.call(same("a"), timeout_s=20)
        pid = only_worker(pool)
        call = asyncio.create_task(pool.call(hanging(tmp_path), timeout_s=20))
        await asyncio.sleep(0.2)
        os.kill(pid, signal.SIGSEGV)
        with pytest.raises(EvaluatorError, match="its process died with code -11"):
            await call
        assert await pool.call(same("a"), timeout_s=20) == 1.0
        os.kill(only_worker(pool), signal.SIGKILL)
        await asyncio.sleep(0.2)
        return await pool.call(same("a"), timeout_s=20)

    assert with_pool(scenario) == 1.0


def test_a_time_out_or_a_cancellation_ends_the_process(tmp_path):
    async def scenario(pool):
        await pool.call(same("a"), timeout_s=20)
        first = only_worker(pool)
        with pytest.raises(TimeoutError):
            await pool.call(hanging(tmp_path), timeout_s=0.2)
        assert not alive(first)
        await pool.call(same("a"), timeout_s=20)
        second = only_worker(pool)
        call = asyncio.create_task(pool.call(hanging(tmp_path), timeout_s=20))
        await asyncio.sleep(0.2)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert not alive(second)

    with_pool(scenario)


def test_no_more_processes_than_allowed_run_at_once():
    async def scenario(pool):
        results = await asyncio.gather(*(pool.call(same(n), timeout_s=60) for n in range(8)))
        assert results == [1.0] * 8
        return len(pool._idle)

    assert with_pool(scenario, workers=2) == 2


def test_a_hanging_process_ends_with_an_env_server_that_was_killed(tmp_path):
    program = f"""
import asyncio
from arpo.desktop.evaluators import EvaluatorPool
from arpo.desktop.evaluator_messages import MAX_REPLY_VALUES, MetricCall
from arpo.desktop.evaluator_worker import _plain
async def main():
    pool = EvaluatorPool()
    await pool.call(MetricCall("exact_match", (1, {{"expected": 1}}), {{}}), timeout_s=60)
    print(pool._idle[0].process.pid, flush=True)
    await pool.call({hanging(tmp_path)!r}, timeout_s=60)
asyncio.run(main())
"""
    server = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},  # a killed process cannot tidy up
    )
    worker = int(server.stdout.readline())
    time.sleep(0.3)
    server.kill()
    server.wait()
    deadline = time.monotonic() + 5
    while alive(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(worker)


def test_the_environment_of_the_env_server_is_not_handed_on(monkeypatch, tmp_path):
    monkeypatch.setenv("ARPO_SECRET", "token")
    (tmp_path / "test.py").write_text("import os\ndef test():\n    return 'ARPO_SECRET' not in os.environ\n")

    async def scenario(pool):
        call = MetricCall(
            "check_python_file_by_test_suite", ("ignored", str(tmp_path / "test.py")), {}, str(tmp_path)
        )
        return await pool.call(call, timeout_s=20)

    assert with_pool(scenario, run_agent_code=True) == 1.0


def make_files(folder):
    for name, value in (("a.xlsx", 3), ("same.xlsx", 3), ("other.xlsx", 4)):
        book = openpyxl.Workbook()
        book.active.append(["n", value])
        book.save(folder / name)
    for name, text in (("a.docx", "hello"), ("same.docx", "hello"), ("other.docx", "bye")):
        document = docx.Document()
        document.add_paragraph(text)
        document.save(folder / name)
    for name, text in (("a.txt", "x\n"), ("same.txt", "x\n"), ("other.txt", "y\n")):
        (folder / name).write_text(text)
    for name, rows in (("a.csv", "a,1"), ("same.csv", "a,1"), ("other.csv", "a,2")):
        with (folder / name).open("w") as file:
            csv.writer(file).writerow(rows.split(","))
    (folder / "a.json").write_text(json.dumps({"a": {"b": 1}}))


RULES = {"rules": [{"type": "sheet_data", "sheet_idx0": 0, "sheet_idx1": "EI0"}]}


METRICS = [
    ("compare_table", ("a.xlsx", "same.xlsx"), ("a.xlsx", "other.xlsx"), RULES),
    ("compare_docx_files", ("a.docx", "same.docx"), ("a.docx", "other.docx"), {}),
    ("compare_text_file", ("a.txt", "same.txt"), ("a.txt", "other.txt"), {}),
    ("compare_csv", ("a.csv", "same.csv"), ("a.csv", "other.csv"), {}),
    (
        "check_json",
        ("a.json", {"expect": [{"key": ["a", "b"], "method": "eq", "ref": 1}]}),
        ("a.json", {"expect": [{"key": ["a", "b"], "method": "eq", "ref": 2}]}),
        {},
    ),
    ("exact_match", ("a", {"expected": "a"}), ("a", {"expected": "b"}), {}),
    ("check_include_exclude", ("ab", {"include": ["a"]}), ("ab", {"exclude": ["a"]}), {}),
    ("literal_match", ("A", "a"), ("A", "b"), {"ignore_case": True}),
    ("fuzzy_match", ("ab", {"expected": "ab"}), ("ab", {"expected": "xy"}), {}),
    (
        "is_expected_bookmarks",
        (
            {"bookmark_bar": {"children": [{"type": "url", "name": "n", "url": "http://a/"}]}},
            {"type": "bookmark_bar_websites_urls", "urls": ["http://a/"]},
        ),
        (
            {"bookmark_bar": {"children": []}},
            {"type": "bookmark_bar_websites_urls", "urls": ["http://a/"]},
        ),
        {},
    ),
]


def test_desktop_envs_metrics_tell_right_from_wrong(tmp_path):
    make_files(tmp_path)

    def on_disk(value):
        path = tmp_path / value if isinstance(value, str) else None
        return str(path) if path and path.is_file() else value

    async def scenario(pool):
        scores = {}
        for name, right, wrong, options in METRICS:
            calls = [
                MetricCall(name, tuple(map(on_disk, given)), options, str(tmp_path))
                for given in (right, wrong)
            ]
            scores[name] = [float(await pool.call(call, timeout_s=60)) for call in calls]
        return scores

    assert with_pool(scenario) == {name: [1.0, 0.0] for name, *_ in METRICS}


def test_every_metric_and_getter_can_be_loaded_with_the_light_dependencies():
    program = """
from arpo.desktop import osworld
from arpo.tasks.osworld_names import GETTERS, METRICS
import sys
for name in METRICS:
    assert callable(osworld.load_metric(name)), name
for kind in GETTERS:
    assert callable(osworld.load_getter(kind)), kind
assert not {"torch", "easyocr", "ray", "transformers"} & {m for m in sys.modules if hasattr(sys.modules[m], "__file__")}
print("all")
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.stdout == "all\n", result.stderr


def test_without_desktop_env_the_error_says_how_to_install_it(tmp_path):
    program = """
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "desktop_env" else find(name, package)
from arpo.desktop import osworld
try:
    osworld.load_metric("exact_match")
except osworld.Unavailable as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "pip install --no-deps desktop-env==1.0.2" in result.stdout


def test_starting_an_env_servers_desktop_imports_no_evaluator_dependency():
    program = """
import sys
import arpo.desktop.guest_desktop, arpo.providers.simulated.provider
heavy = {"pandas", "numpy", "openpyxl", "docx", "lxml", "desktop_env", "requests", "skimage", "scipy", "torch"}
print(sorted(heavy & set(sys.modules)))
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"
