"""What real helms render is what a cluster takes: every object, every values file, no field that nobody knows."""

from __future__ import annotations

import copy
import functools
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import kubernetes_validate
import pytest
import yaml
from api_server import ApiServer, running
from chart_kit import HELMS, ROOT, SHARED, VALUES, found, helm, kuberay_crd, objects, rendered
from jsonschema import Draft7Validator

CUSTOM = {"RayJob", "ServiceMonitor"}
BRANCHES = [
    *((values, ()) for values in VALUES),
    (None, ()),
    ("values-all.yaml", ("--set", "env.mode=inCluster", "--set", "telemetry.serviceMonitor.enabled=true")),
    ("values-all.yaml", ("--set", "env.mode=inCluster", "--set", "env.provider=qemu")),
    ("values-cpu.yaml", ("--set", "env.mode=externalName", "--set", "env.externalName.host=mac.lab")),
    ("values-cpu.yaml", ("--set", "rayJob.submissionMode=HTTPMode", "--set", "networkPolicy.enabled=false")),
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """Helm 3 asks what kinds the cluster has even when it installs dry."""
    with running(tmp_path_factory.mktemp("cluster")) as server:
        yield server


@pytest.mark.parametrize("version", HELMS)
@pytest.mark.parametrize("values", VALUES)
def test_helm_lints_and_installs_dry_from_the_repositorys_root(
    values: str, version: str, cluster: ApiServer
) -> None:
    given = ("-f", values, *VALUES[values])
    linted = helm("lint", "--strict", "charts/arpo", *given, version=version)
    assert linted.returncode == 0, linted.stdout + linted.stderr
    dry = helm(
        "install",
        "arpo",
        "charts/arpo",
        *given,
        "--dry-run=client",
        "--disable-openapi-validation",
        version=version,
        kubeconfig=cluster.kubeconfig,
    )
    assert dry.returncode == 0, dry.stderr
    notes = dry.stdout.partition("NOTES:")[2]
    assert re.search(r"helm -n \w+ test arpo\b", notes)


@pytest.mark.parametrize("values", VALUES)
def test_both_helms_render_the_same(values: str) -> None:
    old, new = (
        [one for one in objects(values, version=version) if one["kind"] != "Secret"] for version in HELMS
    )
    by_name = [sorted(some, key=lambda one: (one["kind"], one["metadata"]["name"])) for some in (old, new)]
    assert by_name[0] == by_name[1]


@pytest.mark.parametrize("kubernetes", ["1.29", kubernetes_validate.latest_version()])
@pytest.mark.parametrize(("values", "extra"), BRANCHES)
def test_every_core_object_is_strictly_valid(
    values: str | None, extra: tuple[str, ...], kubernetes: str
) -> None:
    some = [one for one in objects(values, *extra) if one["kind"] not in CUSTOM]
    assert some
    for one in some:
        kubernetes_validate.validate(one, kubernetes, strict=True)


@pytest.mark.parametrize(("values", "extra"), BRANCHES)
def test_the_rayjob_has_no_field_that_kuberay_does_not_know(
    values: str | None, extra: tuple[str, ...]
) -> None:
    job = found(objects(values, *extra), "RayJob")
    assert problems(job) == []


def test_an_unknown_field_of_a_rayjob_would_be_found() -> None:
    job = copy.deepcopy(found(objects(None), "RayJob"))
    job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["hostUser"] = True
    assert len(problems(job)) == 1


def problems(job: dict[str, Any]) -> list[str]:
    return [f"{list(error.absolute_path)}: {error.message}" for error in rayjob().iter_errors(job)]


@functools.cache
def rayjob() -> Draft7Validator:
    """KubeRay's own schema, made strict: the API server drops what it does not know without a word."""
    crd = kuberay_crd()
    if crd is None:
        pytest.skip(f"KubeRay's CRDs are not in {SHARED} (ARPO_SHARED names the folder)")
    (version,) = [one for one in crd["spec"]["versions"] if one["name"] == "v1"]
    schema = strict(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    return Draft7Validator(schema)


def strict(schema: Any) -> Any:
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: strict(value) for key, value in schema.items()}
    if schema.get("x-kubernetes-int-or-string"):
        result.pop("type", None)
        result["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    known = isinstance(schema.get("properties"), dict) and schema.get("type") == "object"
    metadata = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if known and not metadata:
        result["additionalProperties"] = False
    return result


def test_what_follows_from_other_files_is_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/chart/refresh.py", "--check"],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_option_is_set_in_values_all() -> None:
    def keys(value: Any, path: str = "") -> set[str]:
        if not isinstance(value, dict) or path in free:
            return {path}
        return {key for name, inner in value.items() for key in keys(inner, f"{path}.{name}".lstrip("."))}

    free = {"config"}
    defaults = keys(yaml.safe_load((ROOT / "charts/arpo/values.yaml").read_text()))
    ours = keys(yaml.safe_load((ROOT / "values-all.yaml").read_text()))
    leaves = ("nodeSelector", "annotations", "labels", "resources", "seccompProfile")
    tops = {key for key in defaults if not any(f".{leaf}." in f"{key}." for leaf in leaves)}
    assert tops - ours - {key for key in tops if any(one.startswith(f"{key}.") for one in ours)} == set()


def test_the_chart_packs_into_an_archive_that_installs(tmp_path: Any) -> None:
    packed = helm("package", "charts/arpo", "-d", str(tmp_path))
    assert packed.returncode == 0, packed.stderr
    (archive,) = tmp_path.glob("*.tgz")
    done = helm("template", "arpo", str(archive), "-f", "values-smoke-4gpu.yaml")
    assert done.returncode == 0, done.stderr
    assert "model:" in rendered("values-smoke-4gpu.yaml")
    assert "UI-TARS-1.5-7B" in done.stdout


def test_dashboards_are_json() -> None:
    data = found(objects("values-all.yaml"), "ConfigMap", "all-arpo-dashboards")["data"]
    assert [json.loads(text)["title"] for text in data.values()] == ["ARPO env-server"]
