"""A stand-in Kubernetes API server on a real socket: it has the objects that a test gives it."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

VERSION = {"major": "1", "minor": "33", "gitVersion": "v1.33.4"}


KINDS = {
    "v1": ("Secret", "ConfigMap", "Service", "ServiceAccount", "PersistentVolumeClaim", "Pod"),
    "apps/v1": ("Deployment", "StatefulSet"),
    "policy/v1": ("PodDisruptionBudget",),
    "networking.k8s.io/v1": ("NetworkPolicy",),
    "ray.io/v1": ("RayJob",),
}


def discovery() -> dict[str, Any]:
    """What a client asks to find out which kinds there are."""
    groups, paths = [], {}
    for version, kinds in KINDS.items():
        resources = [
            {
                "name": kind.lower().removesuffix("y") + ("ies" if kind.endswith("y") else "s"),
                "kind": kind, "namespaced": True, "verbs": ["get", "list"],
            }
            for kind in kinds
        ]  # fmt: skip
        folder = "/api/v1" if version == "v1" else f"/apis/{version}"
        paths[folder] = {"kind": "APIResourceList", "groupVersion": version, "resources": resources}
        if version != "v1":
            one = {"groupVersion": version, "version": "v1"}
            groups.append({"name": version.partition("/")[0], "versions": [one], "preferredVersion": one})
    return {
        **paths,
        "/api": {"kind": "APIVersions", "versions": ["v1"]},
        "/apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups},
    }


@dataclass
class ApiServer:
    """paths: what GET answers, by path. refused: paths that are forbidden. asked: what was asked for, query included."""

    url: str
    kubeconfig: Path
    paths: dict[str, Any] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)


@contextlib.contextmanager
def running(folder: Path) -> Iterator[ApiServer]:
    """Run one; its kubeconfig has the namespace `lab` and a token."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = urlsplit(self.path).path
            server.asked.append(self.path)
            server.tokens.add(self.headers.get("Authorization", ""))
            status, body = 200, server.paths.get(path)
            if path in server.refused:
                status, body = 403, {"kind": "Status", "reason": "Forbidden", "code": 403}
            elif body is None:
                status, body = 404, {"kind": "Status", "reason": "NotFound", "code": 404}
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    url = f"http://127.0.0.1:{http.server_port}"
    config = {
        "apiVersion": "v1", "kind": "Config", "current-context": "test",
        "clusters": [{"name": "test", "cluster": {"server": url}}],
        "users": [{"name": "test", "user": {"token": "kubernetes-token"}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test", "namespace": "lab"}}],
    }  # fmt: skip
    (folder / "kubeconfig").write_text(yaml.safe_dump(config))
    server = ApiServer(url, folder / "kubeconfig")
    server.paths |= {"/version": VERSION, **discovery()}
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
