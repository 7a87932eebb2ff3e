"""`arpo doctor --cluster` against a stand-in API server on a real socket, and without any."""

from __future__ import annotations

import base64
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from api_server import ApiServer, running
from chart_kit import kuberay_crd

Arpo = Callable[..., subprocess.CompletedProcess[str]]
CRD = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/rayjobs.ray.io"
OPERATOR = "quay.io/kuberay/operator:v1.7.0"
SLICES = "/apis/discovery.k8s.io/v1/namespaces/lab/endpointslices"


def crd(*, old: bool = False) -> dict[str, Any]:
    """KubeRay 1.7's CRD where it is at hand, else the part of it that counts."""
    if not old and (document := kuberay_crd()) is not None:
        return document
    spec = {
        name: {}
        for name in ("backoffLimit", "submitterConfig", *(() if old else ("preRunningDeadlineSeconds",)))
    }
    spec["rayClusterSpec"] = {"properties": {} if old else {"authOptions": {}}}
    schema = {"openAPIV3Schema": {"properties": {"spec": {"properties": spec}}}}
    return {"spec": {"versions": [{"name": "v1", "schema": schema}]}}


def node(gpus: int, *, unschedulable: bool = False) -> dict[str, Any]:
    return {
        "spec": {"unschedulable": unschedulable},
        "status": {"allocatable": {"cpu": "8", "nvidia.com/gpu": str(gpus), "squat.ai/kvm": "1"}},
    }


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    """A cluster that lacks nothing."""
    with running(tmp_path) as server:
        monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig))
        containers = {"template": {"spec": {"containers": [{"image": OPERATOR}]}}}
        default = {"storageclass.kubernetes.io/is-default-class": "true"}
        data = {name: base64.b64encode(b"hush").decode() for name in ("env-server.token", "trainer.token")}
        server.paths |= {
            CRD: crd(),
            "/apis/apps/v1/deployments": {"items": [{"spec": containers}]},
            "/api/v1/nodes": {"items": [node(4), node(8, unschedulable=True)]},
            "/apis/storage.k8s.io/v1/storageclasses": {
                "items": [
                    {"metadata": {"name": "slow"}, "provisioner": "nfs"},
                    {"metadata": {"name": "fast", "annotations": default}, "provisioner": "csi.example.com"},
                ]
            },
            "/api/v1/namespaces/lab/secrets/arpo-tokens": {"data": data},
            "/api/v1/namespaces/lab/services/arpo-env": {"spec": {"type": "ClusterIP"}},
            SLICES: {"items": [{"endpoints": [{"conditions": {"ready": True, "serving": True}}]}]},
        }
        yield server


def test_a_cluster_that_lacks_nothing_passes(arpo: Arpo, cluster: ApiServer) -> None:
    done = arpo("doctor", "--cluster", "config=configs/smoke_4gpu.yaml", "--kvm-resource", "squat.ai/kvm")
    assert done.returncode == 0, done.stdout + done.stderr
    for line in (
        f"ok  cluster: Kubernetes v1.33.4 at {cluster.url}",
        "ok  kuberay: RayJob v1, operator v1.7.0",
        "ok  gpus: 4 of nvidia.com/gpu allocatable, 4 wanted",
        "ok  kvm: 1 of squat.ai/kvm allocatable",
        "ok  storage: fast (csi.example.com)",
        "ok  tokens: Secret arpo-tokens",
        "ok  env service: arpo-env: 1 ready",
    ):
        assert line in done.stdout
    assert cluster.tokens == {"Bearer kubernetes-token"}
    assert any(one.startswith(f"{SLICES}?labelSelector=kubernetes.io") for one in cluster.asked)
    assert "hush" not in done.stdout + done.stderr
    assert "aHVzaA" not in done.stdout + done.stderr


def test_an_empty_cluster_fails_every_check_and_each_names_its_fix(arpo: Arpo, cluster: ApiServer) -> None:
    version = cluster.paths["/version"]
    cluster.paths.clear()
    cluster.paths |= {
        "/version": version,
        "/api/v1/nodes": {"items": []},
        "/apis/storage.k8s.io/v1/storageclasses": {"items": []},
    }
    done = arpo("doctor", "--cluster", "config=configs/smoke_4gpu.yaml", "--kvm-resource", "squat.ai/kvm")
    assert done.returncode == 2
    failed = [line for line in done.stdout.splitlines() if line.startswith("no  ")]
    assert [line.split()[1].rstrip(":") for line in failed] == [
        "kuberay",
        "gpus",
        "kvm",
        "storage",
        "tokens",
        "env",
    ]
    assert all("; fix: " in line for line in failed)
    assert "helm install kuberay-operator" in failed[0]
    assert "(and 5 more" in done.stderr


def test_an_old_kuberay_is_found_by_the_fields_it_would_drop(arpo: Arpo, cluster: ApiServer) -> None:
    cluster.paths[CRD] = crd(old=True)
    cluster.paths["/apis/apps/v1/deployments"] = {"items": []}
    done = arpo("doctor", "--cluster")
    assert done.returncode == 2
    assert "its RayJob has no preRunningDeadlineSeconds, authOptions" in done.stdout
    assert "helm upgrade kuberay-operator" in done.stdout


def test_a_service_without_a_ready_pod_fails_though_it_publishes_addresses(
    arpo: Arpo, cluster: ApiServer
) -> None:
    conditions = {"ready": True, "serving": False}  # publishNotReadyAddresses
    cluster.paths[SLICES] = {"items": [{"endpoints": [{"conditions": conditions}]}]}
    done = arpo("doctor", "--cluster")
    assert "no  env service: no pod behind the Service arpo-env is ready (1 there); fix: " in done.stdout


def test_what_may_not_be_read_is_said(arpo: Arpo, cluster: ApiServer) -> None:
    cluster.refused = {"/api/v1/nodes", "/apis/apps/v1/deployments"}
    done = arpo("doctor", "--cluster")
    assert (
        "no  gpus: the API server refuses /api/v1/nodes: 403 Forbidden; fix: a person who may" in done.stdout
    )
    assert "ok  kuberay: RayJob v1, operator of unknown version" in done.stdout


def test_names_that_are_not_there_are_asked_for(arpo: Arpo, cluster: ApiServer) -> None:
    done = arpo(
        "doctor", "--cluster", "--namespace", "other", "--name", "lab-arpo", "--storage-class", "none"
    )
    assert (
        "no  tokens: there is no Secret lab-arpo-tokens in namespace other; fix: helm install" in done.stdout
    )
    assert (
        "no  storage: there is no storage class none; fix: checkpoints.storageClass, one of slow, fast"
        in done.stdout
    )


def test_without_a_cluster_it_is_one_clear_line(arpo: Arpo, tmp_path: Path) -> None:
    nothing = arpo("doctor", "--cluster", KUBECONFIG=str(tmp_path / "none"))
    assert nothing.returncode == 2
    assert "no cluster is configured" in nothing.stderr
    with running(tmp_path) as gone:
        pass
    silent = arpo("doctor", "--cluster", KUBECONFIG=str(gone.kubeconfig))
    assert silent.returncode == 2
    assert f"no cluster answers at {gone.url}" in silent.stderr
    assert "fix: " in silent.stderr
    assert "Traceback" not in nothing.stderr + silent.stderr


def test_the_client_is_imported_for_a_cluster_only() -> None:
    program = (
        "import sys\nimport arpo.cli\nimport arpo.trainer.cluster\nsys.exit('kubernetes' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
