"""The env-server's image runs what the chart runs in it: the server, the pod of `helm test`, and Skaffold's synced code."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import qemu_guest
import yaml
from chart_kit import HELMS, NEWEST, ROOT, objects, pods
from cluster import arguments, options
from podman import logs, need, podman, running, until

IMAGE = "localhost/arpo-env-server:server"
pytestmark = pytest.mark.skipif(
    not HELMS[NEWEST].exists(), reason="no helm here (scripts/setup_helm.sh fetches it)"
)
_ASK = """import sys, urllib.request as u
print(u.urlopen("http://127.0.0.1:18082" + sys.argv[1], timeout=2).read().decode())"""


def served(container: str) -> object:
    """What the server in the container says of itself; None: nothing yet."""
    asked = podman("exec", container, "python3", "-c", _ASK, "/healthz")
    return json.loads(asked.stdout) if asked.returncode == 0 else None


def ready(container: str) -> bool:
    """Whether the server in the container has a desktop."""
    return podman("exec", container, "python3", "-c", _ASK, "/readyz").returncode == 0


def test_the_pod_of_helm_test_leases_a_desktop_of_the_pod_of_the_env_server(tmp_path: Path) -> None:
    said = use(need(IMAGE), objects("values-cpu.yaml"), tmp_path)
    assert "leased a simulated desktop, 1280×720" in said
    assert "scored 1" in said


@pytest.mark.timeout(600)
def test_the_pod_of_helm_test_leases_a_virtual_machine(tmp_path: Path) -> None:
    """Emulated, from the small guest of the qemu tests."""
    image = need("localhost/arpo-env-server:qemu", "make images ARGS=qemu")
    try:
        guest = qemu_guest.guest()
    except qemu_guest.NoGuest as error:
        pytest.skip(f"there is no guest for QEMU, and none can be made: {error}")
    disk = tmp_path / "server" / "images" / "guest.qcow2"
    disk.parent.mkdir(parents=True)
    shutil.copy(guest, disk)
    documents = objects(
        "values-cpu.yaml", "--set", "env.provider=qemu,env.qemu.imageClaim=disks,env.qemu.accel=tcg",
        "--set", "env.qemu.memory=384M,env.qemu.cpus=1,env.qemu.image=guest.qcow2",
        "--set", "config.env.screen={640,480},config.env.desktops=1",
    )  # fmt: skip
    said = use(image, documents, tmp_path, boot_s=400)
    assert "leased a qemu desktop, 640×480" in said
    assert list((tmp_path / "server" / "desktops").rglob("*")) == [], "nothing is left of the machines"


def use(image: str, documents: list[dict[str, Any]], tmp_path: Path, boot_s: float = 0) -> str:
    """What the pod of `helm test` says of the env-server's, which then drains. boot_s: until the server is ready."""
    server, test = (pods(documents)[name] for name in ("arpo-env", "arpo-test"))
    # the one name that the cluster's DNS would have to know
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 localhost arpo-env\n")
    with running(
        image,
        *options(documents, server, tmp_path / "server"),
        "--network=none",
        command=arguments(server),
    ) as container:
        if boot_s:
            until(lambda: ready(container), container, boot_s)
        beside = (f"--network=container:{container}", f"--volume={hosts}:/etc/hosts:ro", "--no-healthcheck")
        tried = podman(
            "run", "--rm", *options(documents, test, tmp_path / "test"), *beside, image, *arguments(test)
        )
        assert tried.returncode == 0, tried.stdout + tried.stderr + logs(container)
        assert podman("stop", "--time", "40", container).returncode == 0
        assert podman("inspect", "--format", "{{.State.ExitCode}}", container).stdout.strip() == "0"
    return tried.stdout


def synced(path: Path, files: dict[str, str], rule: dict[str, str]) -> Path:
    """The tar that Skaffold pipes into `kubectl exec`: files at their destinations, the folders above them left out."""
    with tarfile.open(path, mode="w") as archive:
        for source, text in files.items():
            there = PurePosixPath(rule["dest"]) / PurePosixPath(source).relative_to(rule["strip"])
            entry = tarfile.TarInfo(str(there).lstrip("/"))
            entry.size, entry.mode, entry.uid, entry.gid = len(text.encode()), 0o644, 1000, 1000
            archive.addfile(entry, io.BytesIO(text.encode()))
    return path


def test_code_that_skaffold_copies_into_the_pod_is_what_the_server_runs(tmp_path: Path) -> None:
    image = need(IMAGE)
    artifacts = yaml.safe_load((ROOT / "skaffold.yaml").read_text())["build"]["artifacts"]
    (rule,) = artifacts[1]["sync"]["manual"]
    documents = objects("values-cpu.yaml", "--set", "env.reload=true")
    server = pods(documents)["arpo-env"]
    routes = "src/arpo/server/status_routes.py"
    changed = (ROOT / routes).read_text().replace('{"status": "ok"}', "STATUS")
    assert "STATUS" in changed
    changed = changed.replace("annotations\n", "annotations\n\nfrom arpo.server.new.part import STATUS\n", 1)
    with running(
        image, *options(documents, server, tmp_path), "--network=none", command=arguments(server)
    ) as container:
        until(lambda: served(container) == {"status": "ok"}, container)
        files = {
            routes: changed,
            "src/arpo/server/new/part.py": 'STATUS = {"status": "changed"}\n',
        }
        # as Skaffold does it, as the container's own user
        tar = ("tar", "xmf", "-", "-C", "/", "--no-same-owner")
        archive = synced(tmp_path / "synced.tar", files, rule)
        copied = podman("exec", "--interactive", container, *tar, stdin=archive)
        assert copied.returncode == 0, copied.stderr
        until(lambda: served(container) == {"status": "changed"}, container)
        assert "the code has changed" in logs(container)
        owner = podman("exec", container, "stat", "-c", "%u", f"{rule['dest']}/arpo/server/new/part.py")
        assert owner.stdout.strip() == "10001"
        assert podman("stop", "--time", "40", container).returncode == 0
        assert podman("inspect", "--format", "{{.State.ExitCode}}", container).stdout.strip() == "0"
