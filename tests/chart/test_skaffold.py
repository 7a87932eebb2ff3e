"""skaffold.yaml is valid, and names files and objects that exist."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from chart_kit import HELMS, NEWEST, ROOT, SHARED, objects
from jsonschema import Draft7Validator

SKAFFOLD: dict[str, Any] = yaml.safe_load((ROOT / "skaffold.yaml").read_text())
PROFILES = {profile["name"]: profile for profile in SKAFFOLD["profiles"]}


def patched(name: str) -> dict[str, Any]:
    """The document with a profile's JSON patches."""
    document = copy.deepcopy(SKAFFOLD)
    for patch in PROFILES[name]["patches"]:
        *path, last = patch["path"].strip("/").split("/")
        target: Any = document
        for part in path:
            target = target[int(part)] if isinstance(target, list) else target[part]
        if last == "-":
            target.append(patch["value"])
        else:
            target[last] = patch["value"]
    return document


def test_it_is_valid_also_with_each_profile() -> None:
    path = SHARED / "schemas" / "skaffold-v4beta14.json"
    if not path.exists():
        pytest.skip(f"Skaffold's schema is not here: {path} (ARPO_SHARED names its folder)")
    schema = Draft7Validator(json.loads(path.read_text()))
    assert SKAFFOLD["apiVersion"] == "skaffold/v4beta14"
    for document in (SKAFFOLD, *map(patched, PROFILES)):
        assert [error.message for error in schema.iter_errors(document)] == []
    wrong = copy.deepcopy(SKAFFOLD)
    wrong["deploy"]["helm"]["releases"][0]["chart"] = "x"
    assert list(schema.iter_errors(wrong))


def test_the_profiles_are_there_and_their_values_files_exist() -> None:
    assert set(PROFILES) == {"cpu", "smoke-4gpu", "remote-mac"}
    for name in PROFILES:
        (release,) = patched(name)["deploy"]["helm"]["releases"]
        assert (ROOT / release["chartPath"] / "Chart.yaml").exists()
        for values in release["valuesFiles"]:
            assert (ROOT / values).exists()


def test_rayjobs_get_the_built_images() -> None:
    (allowed,) = SKAFFOLD["resourceSelector"]["allow"]
    assert allowed == {"groupKind": "RayJob.ray.io", "image": [".*"], "labels": [".*"]}
    values = yaml.safe_load((ROOT / "charts/arpo/values.yaml").read_text())["images"]
    built = {artifact["image"] for artifact in patched("remote-mac")["build"]["artifacts"]}
    assert built == {values[name]["repository"] for name in ("trainer", "envServer", "tunnel")}


def test_each_profile_names_the_run_and_keeps_its_own_values() -> None:
    runs = yaml.safe_load((ROOT / "charts/arpo/values.yaml").read_text())["rayJob"]["runId"]
    for name in PROFILES:
        (release,) = patched(name)["deploy"]["helm"]["releases"]
        assert f'"{runs}"' in release["setValueTemplates"]["rayJob.runId"]
    assert release["setValueTemplates"]["env.tunnel.authorizedKeys[0]"] == "{{.ARPO_TUNNEL_KEY}}"


@pytest.mark.skipif(not HELMS[NEWEST].exists(), reason="no helm here (scripts/setup_helm.sh fetches it)")
def test_forwarded_services_and_the_synced_folder_are_the_charts() -> None:
    documents = objects("values-remote-mac.yaml")
    services = {
        one["metadata"]["name"]: {port["port"] for port in one["spec"]["ports"]}
        for one in documents
        if one["kind"] == "Service"
    }
    for forward in patched("remote-mac")["portForward"]:
        assert forward["port"] in services[forward["resourceName"]]
    (rule,) = SKAFFOLD["build"]["artifacts"][1]["sync"]["manual"]
    assert (
        f"arpo.server.reload, {rule['dest']}]"
        in (ROOT / "charts/arpo/templates/env/statefulset.yaml").read_text()
    )
    assert list(ROOT.glob(rule["src"]))
    assert Path(rule["src"]).parts[0] == rule["strip"].strip("/")
