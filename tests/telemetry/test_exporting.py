"""Exporting is off unless asked for, and whatever is wrong with it costs nothing but the traces."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import time
from pathlib import Path

import httpx
import pytest
from otlp_collector import Collector, black_hole, refusing
from runs import finish, start
from scripted_desktop import TASK
from server_process import COMMAND, server_process

from arpo.telemetry import names, tracing
from arpo.telemetry.export import FLUSH_S, exporting, signals
from arpo.telemetry.tracing import SpanContext

SMALLEST = (
    "config=configs/smoke_cpu.yaml", "env.provider=simulated", "tasks.suite=simulated", "imitation.enabled=false",
    "trainer.eval_before=false", "trainer.eval_after=false", "trainer.max_steps=1", "trainer.tasks_per_step=1",
    "rollout.group_size=2", "agent.max_pixels=12544",
)  # fmt: skip
ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
PATIENCE_S = FLUSH_S + 1.0


@pytest.mark.parametrize(
    ("environment", "on"),
    [
        ({}, set()),
        ({ENDPOINT: ""}, set()),
        ({ENDPOINT: "http://c:4318"}, {"traces", "metrics"}),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/v1/traces"}, {"traces"}),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://c:4318/v1/metrics"}, {"metrics"}),
        ({ENDPOINT: "http://c:4318", "OTEL_SDK_DISABLED": "TRUE"}, set()),
        ({ENDPOINT: "http://c:4318", "OTEL_SDK_DISABLED": "false"}, {"traces", "metrics"}),
        ({ENDPOINT: "http://c:4318", "OTEL_METRICS_EXPORTER": "none"}, {"traces"}),
    ],
)
def test_the_environment_says_what_is_exported(environment, on) -> None:
    assert signals(environment) == on


@pytest.mark.slow
def test_a_run_that_is_not_traced_imports_nothing_of_opentelemetry(tmp_path: Path) -> None:
    process = start(*SMALLEST, f"run.dir={tmp_path}", "run.name=off", PYTHONPROFILEIMPORTTIME="1")
    output = finish(process)
    assert process.returncode == 0, output
    for program in (output, (tmp_path / "off" / "env-server.log").read_text()):
        assert "arpo.telemetry.tracing" in program, "imports are not shown"
        assert "opentelemetry" not in program
    assert '"trace_id":null' in next((tmp_path / "off" / "trajectories").glob("*.jsonl")).read_text()


def test_disabled_is_off_whatever_the_endpoint(received: Collector, monkeypatch) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    with exporting(names.TRAINER, pytest.fail), tracing.span(names.TRAIN_STEP) as span:
        assert span.context is None
    assert received.requests == []


def test_a_missing_package_is_one_line_that_names_the_extra(tmp_path: Path) -> None:
    # the package is hidden from the program as it is where the extra is not installed
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['opentelemetry'] = None\n")
    environment = {
        **os.environ, ENDPOINT: "http://127.0.0.1:9", "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}",
    }  # fmt: skip
    process = subprocess.Popen(
        [*COMMAND, "--provider", "simulated", "--port", "0", "--token-file", str(tmp_path / "token")],
        env=environment, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if "listening" in line:
            process.terminate()
    assert process.wait(30) == 0
    (warning,) = [line for line in said if "warning" in line]
    assert "pip install 'arpo[telemetry]'" in warning
    assert "Traceback" not in "".join(said)


def test_a_protocol_or_settings_that_nobody_understands_are_one_line(
    received: Collector, monkeypatch
) -> None:
    said: list[str] = []
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    with exporting(names.TRAINER, said.append), tracing.span(names.TRAIN_STEP) as span:
        assert span.context is None
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "-4")
    with exporting(names.TRAINER, said.append):
        pass
    monkeypatch.setenv(ENDPOINT, "user:hunter2@localhost:4318")
    with exporting(names.TRAINER, said.append):
        pass
    assert [line.partition(":")[0] for line in said] == ["warning"] * 3
    assert "4318" in said[0]
    assert "OTEL_" in said[1]
    assert "is no URL" in said[2]
    assert "hunter2" not in said[2]


@pytest.mark.parametrize("dead", ["refusing", "black hole"])
def test_a_dead_collector_costs_one_line_and_the_flush_at_the_end(dead, monkeypatch, caplog) -> None:
    said: list[str] = []
    waits: list[float] = []
    with black_hole() as hole, caplog.at_level(logging.DEBUG, "opentelemetry"):
        monkeypatch.setenv(ENDPOINT, hole if dead == "black hole" else refusing())
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "4")
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "200")
        with exporting(names.TRAINER, said.append):
            for number in range(1500):  # several batches
                began = time.monotonic()
                with tracing.span(names.TRAIN_STEP, {names.TRAIN_STEP_NUMBER: number}):
                    pass
                waits.append(time.monotonic() - began)
            deadline = time.monotonic() + 20
            while not said and time.monotonic() < deadline:
                time.sleep(0.05)
            with tracing.span(names.TRAIN_STEP):
                pass
            left = time.monotonic()
        assert time.monotonic() - left < PATIENCE_S
    assert max(waits) < 3.0, "a span waited for the collector"
    (line,) = said
    assert "does not take traces" in line
    assert not [record for record in caplog.records if record.name.startswith("opentelemetry")]


def test_the_line_about_a_dead_collector_tells_no_secret(monkeypatch) -> None:
    said: list[str] = []
    host = refusing().removeprefix("http://")
    monkeypatch.setenv(ENDPOINT, f"http://user:hunter2@{host}/?key=hunter3")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-api-key=hunter4")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.2")
    with exporting(names.TRAINER, said.append), tracing.span(names.TRAIN_STEP):
        pass
    assert said
    assert host in said[0]
    assert "hunter" not in "".join(said)


def test_an_env_server_whose_collector_never_answers_serves_and_stops_in_time(tmp_path, monkeypatch) -> None:
    with black_hole() as hole:
        monkeypatch.setenv(ENDPOINT, hole)
        with server_process(tmp_path) as server:
            with httpx.Client(
                base_url=server.url, headers={"Authorization": f"Bearer {server.token}"}
            ) as http:
                while not http.get("/readyz").is_success:
                    time.sleep(0.02)
                created = http.post("/v1/sessions", json={"task": TASK}).json()
                path = f"/v1/sessions/{created['session_id']}"
                assert http.get(path, params={"wait_s": 10}).json()["state"] == "ready"
                took = []
                for seq in range(1, 41):
                    began = time.monotonic()
                    body = {"lease": created["lease"], "seq": seq, "actions": []}
                    assert http.post(f"{path}/step", json=body).status_code == 200
                    took.append(time.monotonic() - began)
                assert sorted(took)[20] < 0.2, "half of the steps waited for something"
                assert http.delete(path).status_code == 204
            began = time.monotonic()
            assert server.stop(signal.SIGTERM) == 0
            assert time.monotonic() - began < PATIENCE_S + 4.0  # HTTP and desktops take their share
        assert server.log.count("does not take") <= 2
        assert "Traceback" not in server.log


@pytest.mark.long
@pytest.mark.parametrize("dead", ["refusing", "black hole"])
def test_a_training_run_with_a_dead_collector_ends_as_it_would(dead, tmp_path: Path) -> None:
    with black_hole() as hole:
        took, left = {}, {}
        for name, url in (("off", ""), ("dead", hole if dead == "black hole" else refusing())):
            began = time.time()
            process = start(*SMALLEST, f"run.dir={tmp_path}", f"run.name={name}", **{ENDPOINT: url})
            output = finish(process)
            ended = time.time()
            assert process.returncode == 0, output
            took[name] = ended - began
            left[name] = ended - (tmp_path / name / "metrics.jsonl").stat().st_mtime
    assert (
        output.count("does not take traces") <= 1
    )  # a quick run has ended before the first export is given up
    # The trainer and the embedded server flush one after the other once the last step is done; a try that nobody cuts short
    # would take 10 s in each. What comes before takes as long as this machine is busy.
    flushes_s = 2 * FLUSH_S + 6.0
    assert left["dead"] < left["off"] + flushes_s, (left, took)
    assert took["dead"] < 1.5 * took["off"] + flushes_s, (left, took)


def test_the_service_has_the_name_that_the_environment_gives(received: Collector, monkeypatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "somebody")
    with exporting(names.TRAINER, pytest.fail), tracing.span(names.TRAIN_STEP):
        pass
    assert {span.service for span in received.spans} == {"somebody"}


def test_more_links_than_a_span_holds_by_default_are_kept(received: Collector) -> None:
    episodes = [SpanContext(f"{number:032x}", f"{number:016x}") for number in range(1, 301)]
    with exporting(names.TRAINER, pytest.fail), tracing.span(names.TRAIN_STEP) as span:
        tracing.link_all(span, [(one.trace_id, one.span_id) for one in episodes] + [(None, None)])
    (step,) = received.named("arpo.train_step")
    assert step.links == tuple((one.trace_id, one.span_id) for one in episodes)
