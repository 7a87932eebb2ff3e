"""What cannot work is refused by helm, in words that name the fix."""

from __future__ import annotations

import pytest
from chart_kit import HELMS, refusal

TUNNEL = ("--set", "env.mode=tunnel")
QEMU = ("--set", "env.provider=qemu,env.qemu.imageClaim=osworld,env.kvm.enabled=true")


@pytest.mark.parametrize("version", HELMS)
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--set", "env.mod=tunnel"), "mod"),
        (("--set", "rayjob.enabled=true"), "rayjob"),
        (("--set", "env.mode=remote"), "tunnel"),
        (("--set", "rayJob.submissionMode=SidecarMode"), "K8sJobMode"),
        (("--set", "rayJob.workers.gpus=many"), "integer"),
        (("--set", "rayJob.runId=Train_1"), "runId"),
        (("--set", "config.trainer.max_stepz=3"), "max_stepz"),
        (("--set", "config.replay.rule=never"), "rule"),
        (("--set", "env.tunnel.authorizedKeys[0]=nonsense"), "authorizedKeys"),
        (("--set", "env.qemu.memory=4Gi"), "memory"),
        (("--set", "env.qemu.accel=auto"), "accel"),
        (("--set", "env.qemu.image=/Ubuntu.qcow2"), "image"),
    ],
)  # fmt: skip
def test_the_schema_names_what_is_wrong(arguments: tuple[str, ...], words: str, version: str) -> None:
    said = refusal(*arguments, version=version)
    assert words in said
    assert "schema" in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--set", "env.provider=qemu"), "fix: --set env.qemu.imageClaim=CLAIM"),
        ((*QEMU, "--set", "env.kvm.enabled=false"), "fix: --set env.kvm.enabled=true"),
        (
            (*QEMU, "--set", "config.env.provider_options.memory=8G"),
            "config.env.provider_options.memory is set by the chart; fix: leave it out, and see env.qemu",
        ),
        (TUNNEL, "fix: --set-file 'env.tunnel.authorizedKeys[0]'=KEY.pub"),
        (("--set", "env.mode=externalName"), "fix: --set env.externalName.host=HOST"),
        (("--set", "env.externalName.host=mac.lab"), "but env.mode is inCluster; fix: env.mode=externalName"),
        (
            (*TUNNEL, "--set", "env.tunnel.authorizedKeys[0]=ssh-rsa A,env.tunnel.existingAuthorizedKeysSecret=keys"),
            "fix: one of them",
        ),
        (("--set", "config.hardware.gpus=4"), "hardware.gpus=4, but rayJob.workers has 1 × 0 GPUs; fix: "),
        (("-f", "values-smoke-4gpu.yaml", "--set", "rayJob.workers.gpus=8"), "has 1 × 8 GPUs; fix: "),
        (("--set", "config.env.url=http://x"), "config.env.url is set by the chart; fix: "),
        (("--set", "preset=smoke_5gpu"), "preset=smoke_5gpu is no file of configs/; fix: one of"),
        (("--set", "rayJob.head.resources.limits.memory=4Gi"), "fix: 8Gi or more"),
        (("--set", "kueue.queue=q,rayJob.shutdownAfterJobFinishes=false"), "rayJob.shutdownAfterJobFinishes=true"),
        (
            (*TUNNEL, "--set", "env.tunnel.authorizedKeys[0]=ssh-rsa A,telemetry.serviceMonitor.enabled=true"),
            "fix: env.mode=inCluster",
        ),
        (("--set", f"fullnameOverride={'a' * 48}"), "48 characters, but KubeRay takes 47 at most; fix: a shorter release"),
        (("--set", f"fullnameOverride={'a' * 45}"), "53 characters, but KubeRay takes 47 at most; fix: a shorter rayJob"),
    ],
)  # fmt: skip
def test_what_does_not_fit_together_is_refused_with_the_fix(arguments: tuple[str, ...], words: str) -> None:
    assert words in refusal(*arguments)


def test_a_long_release_name_is_refused_with_the_fix() -> None:
    assert "fix: a shorter release name" in refusal("-f", "values-cpu.yaml", release="r" * 45)
