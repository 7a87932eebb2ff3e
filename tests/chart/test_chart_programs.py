"""The programs take what the chart gives them: each container's command, arguments, environment and files, run here."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import qemu_guest
from chart_kit import ROOT, VALUES, found, objects, pods, volume_files

from arpo.config.load import load_config

BIN = Path(sys.executable).parent
DRAWN = (
    "--set",
    "env.provider=simulated",
    "--set",
    "telemetry.otlp.endpoint=",
    "--set",
    "telemetry.otlp.headersSecret=",
)
IMAGES = ROOT / "images" / "env-server"


class Box:
    """A container's files in a folder of this machine, and its words with the paths and ports that they have here."""

    def __init__(self, documents: list[dict[str, Any]], pod: dict[str, Any], folder: Path) -> None:
        self.container = pod["spec"]["containers"][0]
        self.folder = folder
        self.port = free_port()
        self.texts = {}
        volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
        self.paths = {}
        for mount in self.container["volumeMounts"]:
            here = folder / mount["mountPath"].strip("/")
            here.mkdir(parents=True, exist_ok=True)
            self.paths[mount["mountPath"]] = here
            for name, text in volume_files(documents, volumes[mount["name"]]):
                self.texts[here / name] = text

    def write(self, **replaced: str) -> None:
        """Put the files there; replaced: words of the chart that mean something else here."""
        for path, text in self.texts.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            for old, new in replaced.items():
                text = text.replace(old, new)
            path.write_text(self.here(text))
            path.chmod(0o600)

    def here(self, text: str) -> str:
        """With this machine's paths, each put in once."""
        there = "|".join(re.escape(path) for path in sorted(self.paths, key=len, reverse=True))
        return re.sub(
            rf"(?<![\w./-])({there})(?=[/\s:\"'\]]|$)", lambda found: str(self.paths[found[1]]), text
        )

    def command(self) -> list[str]:
        words = [*self.container["command"], *self.container.get("args", ())]
        if words[:2] == ["tini", "--"]:
            words = words[2:]
        return [
            word.replace("18082", str(self.port)) if "--port" in word else self.here_word(word)
            for word in words
        ]

    def here_word(self, word: str) -> str:
        name, equals, value = word.partition("=")
        return f"{name}={self.here(value)}" if equals else self.here(word)

    def environment(self) -> dict[str, str]:
        given = {
            one["name"]: self.here(one["value"]) for one in self.container.get("env", ()) if "value" in one
        }
        return {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", **given}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def started(box: Box, command: list[str] | None = None) -> Iterator[subprocess.Popen[str]]:
    with (box.folder / "log").open("w") as log:
        process = subprocess.Popen(
            command or box.command(), env=box.environment(), cwd=ROOT, stdin=subprocess.DEVNULL,
            stdout=log, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def answers(box: Box, probe: str, process: subprocess.Popen[str], wait_s: float = 60) -> None:
    """Wait until a probe of the container is answered with 200."""
    asked = box.container[probe]["httpGet"]
    assert asked["port"] in {port["name"] for port in box.container["ports"]}
    deadline = time.monotonic() + wait_s
    while True:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"http://127.0.0.1:{box.port}{asked['path']}").status_code == 200:
                return
        assert process.poll() is None, (box.folder / "log").read_text()
        assert time.monotonic() < deadline, (box.folder / "log").read_text()
        time.sleep(0.1)


@pytest.mark.timeout(240)
def test_the_env_server_starts_its_probes_answer_and_the_test_pod_and_the_trainer_use_it(
    tmp_path: Path,
) -> None:
    documents = objects("values-cpu.yaml")
    templates = pods(documents)
    server, test, head = (
        Box(documents, templates[name], tmp_path / name) for name in ("arpo-env", "arpo-test", "head")
    )
    address = f"127.0.0.1:{server.port}"
    for box in (server, test, head):
        box.write(**{"arpo-env:18082": address})
    with started(server) as process:
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            answers(server, probe, process)

        words = [word.replace("arpo-env:18082", address) for word in test.command()]
        tried = subprocess.run(
            words, env=test.environment(), capture_output=True, text=True, timeout=60, check=False
        )
        assert tried.returncode == 0, tried.stdout + tried.stderr
        assert "leased a simulated desktop, 1280×720" in tried.stdout
        assert "clicked at 640, 360" in tried.stdout

        scrape = found(documents, "Secret", "arpo-tokens")["data"]["metrics.token"]
        metrics = httpx.get(
            f"http://{address}/metrics",
            headers={"Authorization": f"Bearer {base64.b64decode(scrape).decode()}"},
        )
        assert metrics.status_code == 200
        assert dashboard_metrics() <= set(re.findall(r"^# TYPE (\w+)", metrics.text, re.M))

        entrypoint = shlex.split(found(documents, "RayJob")["spec"]["entrypoint"])
        command = [head.here_word(word) for word in entrypoint]
        with started(head, command) as trainer:
            deadline = time.monotonic() + 150
            while "env-server is ready at" not in (log := (head.folder / "log").read_text()):
                assert trainer.poll() is None, log
                assert time.monotonic() < deadline, log
                time.sleep(0.3)
    assert process.returncode == 0, (server.folder / "log").read_text()
    kept = head.paths["/var/lib/arpo"] / "runs" / "smoke_cpu" / "config.yaml"
    assert load_config(kept).launcher.kind == "ray"


def dashboard_metrics() -> set[str]:
    """Metrics that the dashboards ask for, without the endings of histograms."""
    expressions = [
        target["expr"]
        for path in (ROOT / "charts/arpo/dashboards").glob("*.json")
        for panel in json.loads(path.read_text())["panels"]
        for target in panel["targets"]
    ]
    asked = set(re.findall(r"\barpo_\w+", " ".join(expressions)))
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in asked}


@pytest.mark.parametrize("values", VALUES)
def test_the_trainer_takes_every_configuration(values: str, tmp_path: Path) -> None:
    documents = objects(values, "--set", "tokens.existingSecret=")
    head = Box(documents, pods(documents)["head"], tmp_path)
    head.write()
    words = [head.here_word(word) for word in shlex.split(found(documents, "RayJob")["spec"]["entrypoint"])]
    assert words[:2] == ["arpo", "train"]
    done = subprocess.run(
        ["arpo", "doctor", *words[2:], "--no-hardware"],
        env=head.environment(), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_option_of_the_env_server_is_one_that_it_has(tmp_path: Path) -> None:
    extra = (
        "--set",
        "env.mode=inCluster",
        "--set",
        "env.reload=false",
        "--set",
        "tokens.existingSecret=",
        *DRAWN,
    )
    documents = objects("values-all.yaml", *extra)
    server = Box(documents, pods(documents)["all-arpo-env"], tmp_path)
    server.write()
    # the drawn desktops have no options of their own
    server.container["args"] = [one for one in server.container["args"] if "provider-option" not in one]
    with started(server) as process:
        answers(server, "startupProbe", process)
    assert process.returncode == 0


def machines(tmp_path: Path, image: Path) -> tuple[Box, Box]:
    """The env-server with virtual machines, which are emulated here, and the test's pod."""
    documents = objects(
        "values-cpu.yaml", "--set", "env.provider=qemu,env.qemu.imageClaim=osworld,env.qemu.accel=tcg",
        "--set", "env.qemu.memory=384M,env.qemu.cpus=1,env.qemu.image=guest.qcow2",
        "--set", "config.env.screen={640,480},config.env.desktops=1",
    )  # fmt: skip
    boxes = [Box(documents, pods(documents)[name], tmp_path / name) for name in ("arpo-env", "arpo-test")]
    for box in boxes:
        box.write(**{"arpo-env:18082": f"127.0.0.1:{boxes[0].port}"})
    (boxes[0].paths["/var/lib/arpo/images"] / "guest.qcow2").symlink_to(image)
    return boxes[0], boxes[1]


@pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="qemu-system-x86 not installed")
def test_the_env_server_with_virtual_machines_takes_what_the_chart_gives_it(tmp_path: Path) -> None:
    blank = tmp_path / "blank.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", blank, "16M"], check=True)
    server, _ = machines(tmp_path, blank)
    with started(server) as process:
        answers(server, "livenessProbe", process)
        ready = httpx.get(
            f"http://127.0.0.1:{server.port}{server.container['startupProbe']['httpGet']['path']}"
        )
        assert ready.status_code == 503, "its machine has not booted: there is nothing on the disk"
    assert process.returncode == 0, (server.folder / "log").read_text()


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="qemu-system-x86 not installed")
def test_a_virtual_machine_boots_as_the_chart_describes_it_and_the_test_pod_uses_it(tmp_path: Path) -> None:
    try:
        image = qemu_guest.guest()
    except qemu_guest.NoGuest as error:
        pytest.skip(f"there is no guest for QEMU, and none can be made: {error}")
    server, test = machines(tmp_path, image)
    with started(server) as process:
        answers(server, "startupProbe", process, wait_s=500)
        words = [word.replace("arpo-env:18082", f"127.0.0.1:{server.port}") for word in test.command()]
        tried = subprocess.run(
            words, env=test.environment(), capture_output=True, text=True, timeout=200, check=False
        )
        assert tried.returncode == 0, tried.stdout + tried.stderr
        assert "leased a qemu desktop, 640×480" in tried.stdout
    assert process.returncode == 0, (server.folder / "log").read_text()


def test_a_reloading_env_server_serves_changed_code(tmp_path: Path) -> None:
    documents = objects("values-cpu.yaml", "--set", "env.reload=true")
    server = Box(documents, pods(documents)["arpo-env"], tmp_path)
    server.write()
    there = server.paths["/home/arpo"] / "reload" / "arpo" / "server" / "status_routes.py"
    code = (ROOT / "src/arpo/server/status_routes.py").read_text()

    def write(status: str) -> None:
        changed = code.replace('{"status": "ok"}', f'{{"status": "{status}"}}')
        assert changed != code
        there.write_text(changed)

    there.parent.mkdir(parents=True)
    write("changed before the start")
    with started(server) as process:
        answers(server, "readinessProbe", process)
        url, deadline = f"http://127.0.0.1:{server.port}/healthz", time.monotonic() + 60
        assert httpx.get(url).json() == {"status": "changed before the start"}
        write("changed")
        while True:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(url).json() == {"status": "changed"}:
                    break
            assert time.monotonic() < deadline, (server.folder / "log").read_text()
            time.sleep(0.1)
    assert process.returncode == 0


@pytest.mark.skipif(
    not (IMAGES / "tunnel" / "arpo-tunnel-sshd").exists(), reason="the tunnel image is not here"
)
def test_the_tunnels_script_finds_its_files_where_the_chart_mounts_them() -> None:
    documents = objects("values-remote-mac.yaml")
    container = pods(documents)["arpo-tunnel"]["spec"]["containers"][0]
    script = (IMAGES / "tunnel" / "arpo-tunnel-sshd").read_text()
    mounted = tuple(mount["mountPath"] for mount in container["volumeMounts"])
    wanted = re.findall(r"^(?:key|authorized|own)=(\S+)$", script, re.M)
    assert len(wanted) == 3
    assert all(path.startswith(mounted) for path in wanted)
    held = {
        key for one in documents if one["kind"] == "Secret" for key in one.get("data", one.get("stringData"))
    }
    assert {Path(path).name for path in wanted[:2]} <= held
    assert {one["name"] for one in container["env"]} <= set(re.findall(r"ARPO_\w+", script))
    config = (IMAGES / "tunnel" / "sshd_config").read_text()
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert f"Port {ports['ssh']}" in config
    assert f"PermitListen {ports['env']}" in config


@pytest.mark.skipif(not (IMAGES / "Dockerfile").exists(), reason="the images are not here")
def test_the_containers_run_what_the_images_have() -> None:
    text = (IMAGES / "Dockerfile").read_text()
    entrypoints = [json.loads(found) for found in re.findall(r"^ENTRYPOINT (\[.*\])$", text, re.M)]
    documents = [*objects("values-remote-mac.yaml"), *objects("values-cpu.yaml")]
    templates = pods(documents)
    assert templates["arpo-env"]["spec"]["containers"][0]["command"] in entrypoints
    assert templates["arpo-tunnel"]["spec"]["containers"][0]["command"] in entrypoints
