"""The chart as helm renders it; every render is made once a session."""

from __future__ import annotations

import base64
import functools
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent.parent
CHART = ROOT / "charts" / "arpo"
HELMS = {version: ROOT / ".cache" / "helm" / f"helm-{version}" for version in ("3.17.2", "4.1.4")}
NEWEST = "4.1.4"
MAC_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAZQkzYeYfZ0mHyt7FYMPJkFLIy1DFmZkLySqYyOZdkn mac"
VALUES: dict[str, tuple[str, ...]] = {
    "values-smoke-4gpu.yaml": (),
    "values-smoke-8gpu.yaml": (),
    "values-cpu.yaml": (),
    "values-remote-mac.yaml": ("--set", f"env.tunnel.authorizedKeys[0]={MAC_KEY}"),
    "values-all.yaml": (),
}
"""Values file → what its first lines say to give besides."""
SHARED = Path(os.environ.get("ARPO_SHARED", ROOT.parent / "shared"))
"""CRDs and schemas that are kept beside the checkout."""


def helm(
    *arguments: str, version: str = NEWEST, kubeconfig: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run helm at the repository's root; without a kubeconfig it finds no cluster."""
    return subprocess.run(
        [HELMS[version], *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        timeout=120,
        env={
            "PATH": os.environ["PATH"],
            "HOME": "/nonexistent",
            "KUBECONFIG": str(kubeconfig or "/nonexistent"),
        },
    )


@functools.cache
def rendered(values: str | None, *extra: str, release: str = "arpo", version: str = NEWEST) -> str:
    """What `helm template` prints. values: a file at the repository's root, to which what it needs is added."""
    given = ("-f", values, *VALUES[values]) if values else ()
    done = helm("template", release, "charts/arpo", *given, *extra, version=version)
    assert done.returncode == 0, done.stderr
    return done.stdout


def objects(values: str | None, *extra: str, **how: str) -> list[dict[str, Any]]:
    """The rendered objects."""
    return [one for one in yaml.safe_load_all(rendered(values, *extra, **how)) if one]


def found(documents: list[dict[str, Any]], kind: str, name: str = "") -> dict[str, Any]:
    """The one object of a kind, with a name if there are several."""
    (one,) = [
        each for each in documents if each["kind"] == kind and (not name or each["metadata"]["name"] == name)
    ]
    return one


def pods(documents: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Name → pod template of everything that runs."""
    result: dict[str, dict[str, Any]] = {}
    for one in documents:
        name, spec = one["metadata"]["name"], one.get("spec", {})
        match one["kind"]:
            case "Deployment" | "StatefulSet":
                result[name] = spec["template"]
            case "Pod":
                result[name] = one
            case "RayJob":
                cluster = spec["rayClusterSpec"]
                result["head"] = cluster["headGroupSpec"]["template"]
                result["worker"] = cluster["workerGroupSpecs"][0]["template"]
                if "submitterPodTemplate" in spec:
                    result["submitter"] = spec["submitterPodTemplate"]
    return result


def volume_files(documents: list[dict[str, Any]], volume: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(name, text) of what a volume holds."""
    for source in volume["projected"]["sources"] if "projected" in volume else (volume,):
        secret = source.get("secret", {})
        if name := secret.get("secretName") or secret.get("name"):
            data = found(documents, "Secret", name)["data"]
            for item in secret.get("items") or [{"key": key, "path": key} for key in data]:
                yield item["path"], base64.b64decode(data[item["key"]]).decode()
        if name := source.get("configMap", {}).get("name"):
            yield from found(documents, "ConfigMap", name)["data"].items()


def refusal(*arguments: str, release: str = "arpo", version: str = NEWEST) -> str:
    """What helm says when it refuses to render."""
    done = helm("template", release, "charts/arpo", *arguments, version=version)
    assert done.returncode != 0, done.stdout
    return done.stderr


@functools.cache
def kuberay_crd() -> dict[str, Any] | None:
    """KubeRay's definition of RayJobs; None where it is not at hand. PyYAML's own reader would take half a minute."""
    path = SHARED / "crds" / "rayjobs.yaml"
    return yaml.load(path.read_text(), yaml.CSafeLoader) if path.exists() else None
