"""What the chart promises: names, selectors, tokens, policies, security, devices, and a configuration that is ours."""

from __future__ import annotations

import base64
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from api_server import running
from chart_kit import HELMS, ROOT, VALUES, found, helm, objects, pods

from arpo.config.load import load_config
from arpo.protocol.tokens import Scope, parse_tokens, token_for
from arpo.providers.registry import provider_names

IN_CLUSTER = ("--set", "env.mode=inCluster")
QEMU = ("--set", "env.provider=qemu,env.qemu.imageClaim=osworld,env.kvm.enabled=true")
GPU4, MAC, ALL, CPU = (
    "values-smoke-4gpu.yaml",
    "values-remote-mac.yaml",
    "values-all.yaml",
    "values-cpu.yaml",
)


def names(documents: list[dict[str, Any]], kind: str) -> set[str]:
    return {one["metadata"]["name"] for one in documents if one["kind"] == kind}


def test_names_follow_the_release() -> None:
    assert "arpo-env" in names(objects(GPU4), "Service")
    assert found(objects(GPU4), "RayJob")["metadata"]["name"] == "arpo-train-1"
    assert "lab-arpo-env" in names(objects(CPU, release="lab"), "Service")
    assert "all-arpo-tunnel" in names(objects(ALL), "Service")
    again = objects(CPU, "--set", "rayJob.runId=train-2")
    assert found(again, "RayJob")["metadata"]["name"] == "arpo-train-2"


@pytest.mark.parametrize(("values", "extra"), [*((v, ()) for v in VALUES), (ALL, IN_CLUSTER)])
def test_every_selector_selects_exactly_the_pods_it_means(values: str, extra: tuple[str, ...]) -> None:
    documents = objects(values, *extra)
    labels = {name: pod["metadata"]["labels"] for name, pod in pods(documents).items()}

    def selected(wanted: dict[str, str]) -> set[str]:
        return {name for name, own in labels.items() if wanted.items() <= own.items()}

    meant = {"trainer": {"head", "worker"}}
    for one in documents:
        spec = one.get("spec", {})
        match one["kind"]:
            case "Service" if "selector" in spec:
                wanted = spec["selector"]
            case "Deployment" | "StatefulSet" | "PodDisruptionBudget":
                wanted = spec["selector"]["matchLabels"]
            case "NetworkPolicy":
                wanted = spec["podSelector"]["matchLabels"]
            case _:
                continue
        component = wanted["app.kubernetes.io/component"]
        hits = selected(wanted)
        assert hits == meant.get(component, hits), one["metadata"]["name"]
        assert len(hits) == len(meant.get(component, {1})), (one["kind"], one["metadata"]["name"], hits)


@pytest.mark.parametrize(
    ("values", "extra"), [*((v, ()) for v in VALUES), (ALL, IN_CLUSTER), (CPU, ()), (CPU, QEMU)]
)
def test_every_pod_is_restricted_and_has_no_rights(values: str, extra: tuple[str, ...]) -> None:
    documents = objects(values, *extra)
    for name, pod in pods(documents).items():
        spec = pod["spec"]
        assert spec["automountServiceAccountToken"] is False, name
        assert spec["serviceAccountName"] in names(documents, "ServiceAccount"), name
        security = spec["securityContext"]
        assert security["runAsNonRoot"] is True, name
        assert (security["runAsUser"], security["runAsGroup"], security["fsGroup"]) == (10001,) * 3
        xvfb = name.endswith("-env") and "--provider=xvfb" in spec["containers"][0]["args"]
        assert xvfb or security["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert not spec.get("hostNetwork")
        assert not any("hostPath" in volume for volume in spec["volumes"])
        for container in spec["containers"]:
            own = container["securityContext"]
            assert own["allowPrivilegeEscalation"] is False
            assert own["readOnlyRootFilesystem"] is True
            assert own["capabilities"] == {"drop": ["ALL"]}
            assert "limits" in container["resources"], name
            mounted = {mount["name"] for mount in container["volumeMounts"]}
            assert mounted == {volume["name"] for volume in spec["volumes"]}, name
    assert not [one for one in documents if "Role" in one["kind"]]


def test_the_xvfb_sandbox_gets_the_user_namespaces_it_needs_and_nothing_else_does() -> None:
    spec = pods(objects(GPU4))["arpo-env"]["spec"]
    assert spec["securityContext"]["seccompProfile"] == {"type": "Unconfined"}
    assert spec["hostUsers"] is False
    assert spec["containers"][0]["securityContext"]["procMount"] == "Unmasked"
    own = pods(objects(ALL, *IN_CLUSTER))["all-arpo-env"]["spec"]
    assert own["securityContext"]["seccompProfile"]["localhostProfile"] == "arpo.json"
    assert "hostUsers" not in own
    simulated = pods(objects(CPU))["arpo-env"]["spec"]
    assert simulated["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}


def test_virtual_machines_get_their_disk_their_device_and_room_to_write() -> None:
    spec = pods(objects(CPU, *QEMU))["arpo-env"]["spec"]
    (container,) = spec["containers"]
    assert container["resources"]["limits"]["devices.kubevirt.io/kvm"] == 1
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    assert volumes["images"]["persistentVolumeClaim"] == {"claimName": "osworld", "readOnly": True}
    assert volumes["desktops"]["emptyDir"] == {"sizeLimit": "64Gi"}
    mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
    assert mounts["images"]["readOnly"] is True
    options = {
        one.removeprefix("--provider-option=") for one in container["args"] if "provider-option" in one
    }
    assert options == {
        f"image={mounts['images']['mountPath']}/Ubuntu.qcow2", f"folder={mounts['desktops']['mountPath']}",
        "memory=4G", "cpus=4", "accel=kvm", "network=none",
    }  # fmt: skip
    assert "--start-timeout-s=600" in container["args"]
    assert "supplementalGroups" not in spec["securityContext"]
    everything = pods(objects(ALL, *IN_CLUSTER, "--set", "env.provider=qemu"))["all-arpo-env"]["spec"]
    assert everything["securityContext"]["supplementalGroups"] == [36]
    emulated = objects(CPU, *QEMU, "--set", "env.kvm.enabled=false,env.qemu.accel=tcg")
    assert "kvm" not in str(pods(emulated)["arpo-env"])


def test_a_pod_may_take_as_long_to_start_as_its_machines_to_boot() -> None:
    slow = objects(CPU, *QEMU, "--set", "config.env.timeouts.start_s=1800")
    (container,) = pods(slow)["arpo-env"]["spec"]["containers"]
    assert "--start-timeout-s=1800" in container["args"]
    probe = container["startupProbe"]
    assert probe["failureThreshold"] * probe["periodSeconds"] > 1800


def test_devices_are_asked_for_by_the_names_in_the_values() -> None:
    assert (
        pods(objects(GPU4))["worker"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 4
    )
    everything = pods(objects(ALL, *IN_CLUSTER))
    assert everything["worker"]["spec"]["containers"][0]["resources"]["limits"]["amd.com/gpu"] == 2
    assert everything["all-arpo-env"]["spec"]["containers"][0]["resources"]["limits"]["squat.ai/kvm"] == 1
    assert "kvm" not in str(pods(objects(GPU4))["arpo-env"])


def test_the_rayjob_runs_the_driver_on_a_head_without_ranks() -> None:
    job = found(objects(GPU4), "RayJob")["spec"]
    assert job["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    head = job["rayClusterSpec"]["headGroupSpec"]
    assert (head["rayStartParams"]["num-cpus"], head["rayStartParams"]["num-gpus"]) == ("0", "0")
    assert (job["submissionMode"], job["shutdownAfterJobFinishes"]) == ("K8sJobMode", True)
    assert (
        min(job[name] for name in ("activeDeadlineSeconds", "preRunningDeadlineSeconds", "backoffLimit")) > 0
    )
    worker = job["rayClusterSpec"]["workerGroupSpecs"][0]
    config = load_config(ROOT / "configs" / "smoke_4gpu.yaml")
    room = int(worker["rayStartParams"]["num-cpus"]) * worker["replicas"]
    assert room >= (config.learner_ranks + config.launcher.engines) * config.launcher.cpus
    submitter = job["submitterPodTemplate"]["spec"]["containers"][0]
    assert submitter["args"] == ["--", *shlex.split(job["entrypoint"])]


@pytest.mark.parametrize("values", VALUES)
def test_workers_have_room_for_all_ranks_and_engines(values: str, tmp_path: Path) -> None:
    documents = objects(values)
    config = load_config(written(documents, tmp_path))
    worker = found(documents, "RayJob")["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    room = int(worker["rayStartParams"]["num-cpus"]) * worker["replicas"]
    assert room >= (config.learner_ranks + config.launcher.engines) * config.launcher.cpus
    assert int(worker["rayStartParams"]["num-gpus"]) * worker["replicas"] == config.hardware.gpus


def test_overrides_reach_the_command_line_as_single_words() -> None:
    words = shlex.split(found(objects(ALL), "RayJob")["spec"]["entrypoint"])
    assert words == [
        "arpo", "train", "config=/etc/arpo/config.yaml", "learner.dual_clip=null", "env.screen=[1280, 720]",
    ]  # fmt: skip


def test_kueue_labels_are_there_when_a_queue_is_named() -> None:
    labels = found(objects(ALL), "RayJob")["metadata"]["labels"]
    assert labels["kueue.x-k8s.io/queue-name"] == "gpus"
    assert labels["kueue.x-k8s.io/priority-class"] == "low"
    assert "kueue" not in str(found(objects(GPU4), "RayJob"))


def test_one_volume_on_one_node_keeps_head_and_workers_together() -> None:
    assert "affinity" not in pods(objects(GPU4))["worker"]["spec"]
    worker, head = (pods(objects(CPU))[name] for name in ("worker", "head"))
    (term,) = worker["spec"]["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert term["labelSelector"]["matchLabels"].items() <= head["metadata"]["labels"].items()
    assert "affinity" not in head["spec"]


def written(documents: list[dict[str, Any]], folder: Path) -> Path:
    config = next(one for one in documents if one["metadata"]["name"].endswith("-config"))
    (folder / "config.yaml").write_text(config["data"]["config.yaml"])
    return folder / "config.yaml"


@pytest.mark.parametrize(
    ("values", "preset"),
    [
        (GPU4, "smoke_4gpu"),
        ("values-smoke-8gpu.yaml", "smoke_8gpu"),
        (MAC, "smoke_remote_env_tunnel"),
    ],
)
def test_the_configmap_is_the_preset_but_for_what_the_chart_sets(
    values: str, preset: str, tmp_path: Path
) -> None:
    ours = load_config(written(objects(values), tmp_path)).model_dump(mode="json")
    theirs = load_config(ROOT / "configs" / f"{preset}.yaml").model_dump(mode="json")
    theirs["env"] |= {
        "url": "http://arpo-env:18082",
        "token_file": "/etc/arpo/tokens/trainer.token",
    }
    theirs["run"]["dir"] = "/var/lib/arpo/runs"
    theirs["launcher"]["kind"] = "ray"
    if values == MAC:
        theirs["hardware"]["gpus"] = 2
    assert ours == theirs


def test_settings_in_the_values_win_over_the_preset(tmp_path: Path) -> None:
    config = load_config(written(objects(ALL), tmp_path))
    assert (config.run.name, config.env.desktops, config.replay.rule) == ("all", 4, "off")
    assert config.model.path == "ByteDance-Seed/UI-TARS-1.5-7B"


def test_the_tokens_are_a_token_file_that_server_and_trainer_read() -> None:
    data = {
        key: base64.b64decode(value).decode()
        for key, value in found(objects(GPU4), "Secret", "arpo-tokens")["data"].items()
    }
    server, trainer = parse_tokens(data["env-server.token"]), parse_tokens(data["trainer.token"])
    mine, admin = token_for(trainer, Scope.TRAINER), token_for(server, Scope.ADMIN)
    assert mine is not None
    assert admin is not None
    assert mine.secret in {one.secret for one in server}
    assert token_for(trainer, Scope.ADMIN) is None
    assert data["metrics.token"] == admin.secret
    assert len(admin.secret) >= 32
    assert (
        found(objects(GPU4), "Secret", "arpo-tokens")["metadata"]["annotations"]["helm.sh/resource-policy"]
        == "keep"
    )
    other = found(objects(GPU4, "--set", "nameOverride=arpo"), "Secret", "arpo-tokens")["data"]
    assert other["trainer.token"] != found(objects(GPU4), "Secret", "arpo-tokens")["data"]["trainer.token"]


@pytest.mark.parametrize("version", HELMS)
def test_tokens_and_host_key_that_are_in_the_cluster_are_used_again(tmp_path: Path, version: str) -> None:
    names_of = ("arpo-tokens", "arpo-tunnel-host-key")
    with running(tmp_path) as cluster:
        given = ("-f", MAC, *VALUES[MAC], "--dry-run=server", "--disable-openapi-validation")

        def upgraded() -> dict[str, dict[str, str]]:
            done = helm(
                "template", "arpo", "charts/arpo", *given, version=version, kubeconfig=cluster.kubeconfig
            )
            assert done.returncode == 0, done.stderr
            documents = [one for one in yaml.safe_load_all(done.stdout) if one]
            return {name: found(documents, "Secret", name)["data"] for name in names_of}

        first = upgraded()
        assert upgraded() != first  # nothing was there yet
        for name, data in first.items():
            cluster.paths[f"/api/v1/namespaces/lab/secrets/{name}"] = {
                "apiVersion": "v1", "kind": "Secret", "data": data,
                "metadata": {
                    "name": name,
                    "labels": {"app.kubernetes.io/managed-by": "Helm"},
                    "annotations": {"meta.helm.sh/release-name": "arpo", "meta.helm.sh/release-namespace": "lab"},
                },
            }  # fmt: skip
        assert upgraded() == first


def test_an_existing_secret_takes_the_place_of_the_made_one() -> None:
    documents = objects(ALL, *IN_CLUSTER)
    assert not [one for one in names(documents, "Secret") if "token" in one]
    for name in ("all-arpo-env", "head", "all-arpo-test"):
        assert "my-tokens" in str(pods(documents)[name]["spec"]["volumes"])


def test_a_token_is_in_no_command_line_no_environment_and_no_config() -> None:
    documents = objects(GPU4)
    secrets = found(documents, "Secret", "arpo-tokens")["data"]
    rest = str([one for one in documents if one["kind"] != "Secret"])
    for value in secrets.values():
        assert base64.b64decode(value).decode().split()[0] not in rest


def test_only_those_talk_who_have_to() -> None:
    documents = objects(MAC)
    tunnel = found(documents, "NetworkPolicy", "arpo-tunnel")["spec"]
    assert [[port["port"] for port in rule["ports"]] for rule in tunnel["ingress"]] == [[2222], [15001]]
    assert "from" not in tunnel["ingress"][0]
    asked = {
        peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"]
        for peer in tunnel["ingress"][1]["from"]
    }
    assert asked == {"trainer", "test"}
    trainer = found(documents, "NetworkPolicy", "arpo-trainer")["spec"]["ingress"]
    assert "ports" not in trainer[0]
    assert trainer[1]["ports"] == [{"port": 8265, "protocol": "TCP"}]
    env = found(objects(GPU4), "NetworkPolicy", "arpo-env")["spec"]
    (to,) = [rule["to"] for rule in env["egress"] if "to" in rule]
    assert "169.254.0.0/16" in to[0]["ipBlock"]["except"]
    assert names(documents, "NetworkPolicy") == {
        "arpo-tunnel",
        "arpo-trainer",
        "arpo-jaeger",
    }


def test_probes_follow_the_way_that_requests_take() -> None:
    container = pods(objects(GPU4))["arpo-env"]["spec"]["containers"][0]
    assert container["startupProbe"]["httpGet"]["path"] == "/readyz"
    assert container["readinessProbe"]["httpGet"]["path"] == "/healthz"
    sshd = pods(objects(MAC))["arpo-tunnel"]["spec"]["containers"][0]
    assert sshd["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "env"}
    assert {port["name"]: port["containerPort"] for port in sshd["ports"]} == {"ssh": 2222, "env": 15001}
    service = found(objects(MAC), "Service", "arpo-env")["spec"]
    assert service["publishNotReadyAddresses"] is True
    assert (service["ports"][0]["port"], service["ports"][0]["targetPort"]) == (18082, "env")


def test_every_program_of_ours_exports_to_the_endpoint() -> None:
    for values, extra, endpoint in (
        (CPU, ("--set", "telemetry.jaeger.enabled=true"), "http://arpo-jaeger:4318"),
        (ALL, IN_CLUSTER, "https://collector.example.com:4318"),
    ):
        for name, pod in pods(objects(values, *extra)).items():
            if name in ("head", "worker") or name.endswith("-env"):
                env = {one["name"]: one.get("value", "") for one in pod["spec"]["containers"][0]["env"]}
                assert env["OTEL_EXPORTER_OTLP_ENDPOINT"] == endpoint, name
    assert "OTEL" not in str(objects(GPU4))
    mac = pods(objects(MAC))["arpo-tunnel"]["spec"]["containers"][0]["env"]
    assert mac == [{"name": "ARPO_TUNNEL_PERMIT_OPEN", "value": "arpo-jaeger:4318"}]
    assert "collector.example.com:4318" in str(pods(objects(ALL))["all-arpo-tunnel"])


def test_the_tunnels_host_key_is_one_that_openssh_reads(tmp_path: Path) -> None:
    if shutil.which("ssh-keygen") is None:
        pytest.skip("no ssh-keygen here (openssh-client)")
    secret = found(objects(MAC), "Secret", "arpo-tunnel-host-key")["data"]["ssh_host_ed25519_key"]
    key = tmp_path / "key"
    key.write_bytes(base64.b64decode(secret))
    key.chmod(0o600)
    shown = subprocess.run(["ssh-keygen", "-y", "-f", key], capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith("ecdsa-sha2-nistp256 ")


def test_qemu_is_refused_for_as_long_as_the_env_server_has_no_such_provider() -> None:
    guarded = "no qemu provider yet" in (ROOT / "charts/arpo/templates/_helpers.tpl").read_text()
    assert guarded == ("qemu" not in provider_names())
    schema = yaml.safe_load((ROOT / "scripts/chart/values.schema.yaml").read_text())
    known = set(schema["properties"]["env"]["properties"]["provider"]["enum"])
    assert known - {"qemu"} <= set(provider_names())
