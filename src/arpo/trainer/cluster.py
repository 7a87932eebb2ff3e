"""What a Kubernetes cluster lacks for the chart, asked of its API server.

Invariant: nothing here changes anything in the cluster, and no value of a Secret is shown; `kubernetes` is imported only
when the cluster is asked.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from arpo.protocol.problems import ConfigError
from arpo.trainer.doctor import Check

_ANSWER_S = 10.0
_KUBERAY = "rayjobs.ray.io"
_NEEDED = ("backoffLimit", "preRunningDeadlineSeconds", "submitterConfig")
_TOKENS = ("env-server.token", "trainer.token")
_INSTALL = (
    "fix: helm repo add kuberay https://ray-project.github.io/kuberay-helm/ && "
    "helm install kuberay-operator kuberay/kuberay-operator --version 1.7.0"
)


@dataclass(frozen=True)
class Wanted:
    """What the release needs. name: of the chart's objects, before `-env`. namespace: None is the context's.

    kvm_resource, storage_class: None when the desktops need no KVM, and for the cluster's default class.
    """

    name: str
    namespace: str | None
    gpus: int
    gpu_resource: str
    kvm_resource: str | None
    storage_class: str | None


def look(wanted: Wanted) -> list[Check]:
    """Look at everything that the chart relies on. Raises ConfigError when there is no cluster that answers."""
    if importlib.util.find_spec("kubernetes") is None:
        raise ConfigError("--cluster needs the kubernetes client; fix: pip install 'arpo[cluster]'")
    files = os.environ.get("KUBECONFIG", "~/.kube/config").split(os.pathsep)
    if "KUBERNETES_SERVICE_HOST" not in os.environ and not any(
        Path(one).expanduser().exists() for one in files
    ):
        raise ConfigError(
            f"no cluster is configured: {os.pathsep.join(files)} does not exist and this is no pod; fix: KUBECONFIG=FILE"
        )
    import kubernetes
    from kubernetes.config import ConfigException

    try:
        kubernetes.config.load_config()
    except ConfigException as error:
        raise ConfigError(
            f"the kubeconfig cannot be used: {error}; fix: `kubectl config use-context NAME`"
        ) from error
    settings = kubernetes.client.Configuration.get_default_copy()
    settings.retries = False
    with kubernetes.client.ApiClient(settings) as api:
        return list(_Cluster(api, settings.host, wanted).checks())


class _Absent(Exception):  # noqa: N818 - an answer, not an error
    """The API server has no such object."""


class _Cluster:
    def __init__(self, api: Any, host: str, wanted: Wanted) -> None:
        self._api = api
        self._host = host
        self._wanted = wanted
        self._namespace = wanted.namespace or _context_namespace()

    def checks(self) -> Iterator[Check]:
        yield Check("cluster", True, f"Kubernetes {self._get('/version')['gitVersion']} at {self._host}")
        for name, look_at in (
            ("kuberay", self._kuberay),
            ("gpus", self._gpus),
            ("kvm", self._kvm),
            ("storage", self._storage),
            ("tokens", self._tokens),
            ("env service", self._env_service),
        ):
            yield _checked(name, look_at)

    def _kuberay(self) -> str:
        try:
            crd = self._get(f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{_KUBERAY}")
        except _Absent:
            raise ConfigError(f"the cluster has no RayJobs (CRD {_KUBERAY}); {_INSTALL}") from None
        version = next((one for one in crd["spec"]["versions"] if one["name"] == "v1"), None)
        if version is None:
            raise ConfigError(f"the CRD {_KUBERAY} has no version v1; {_INSTALL}")
        spec = version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
        cluster = spec.get("rayClusterSpec", {}).get("properties", {})
        lacking = [
            *(name for name in _NEEDED if name not in spec),
            *(name for name in ("authOptions",) if name not in cluster),
        ]
        if lacking:
            raise ConfigError(
                f"KubeRay {self._operator()} is too old: its RayJob has no {', '.join(lacking)}, which the API server "
                f"would drop silently; {_INSTALL.replace('helm install', 'helm upgrade')}"
            )
        return f"RayJob v1, operator {self._operator()}"

    def _operator(self) -> str:
        query = "labelSelector=app.kubernetes.io%2Fname%3Dkuberay-operator"
        try:
            found = self._get(f"/apis/apps/v1/deployments?{query}")["items"]
        except ConfigError:
            found = []  # may not be listed; the CRD has said what counts
        images = [one["spec"]["template"]["spec"]["containers"][0]["image"] for one in found]
        return images[0].rpartition(":")[2] if images else "of unknown version"

    def _gpus(self) -> str:
        resource, wanted = self._wanted.gpu_resource, self._wanted.gpus
        total = self._allocatable(resource)
        if total < wanted:
            raise ConfigError(
                f"the configuration wants {wanted} of {resource}, but the nodes have {total}; fix: nodes with GPUs and "
                "their device plugin, another --gpu-resource, or a configuration with fewer hardware.gpus"
            )
        return f"{total} of {resource} allocatable, {wanted} wanted"

    def _kvm(self) -> str:
        resource = self._wanted.kvm_resource
        if resource is None:
            return "not asked for (--kvm-resource)"
        if not (total := self._allocatable(resource)):
            raise ConfigError(
                f"no node has {resource}; fix: a device plugin for /dev/kvm, and its resource as env.kvm.resource"
            )
        return f"{total} of {resource} allocatable"

    def _allocatable(self, resource: str) -> int:
        nodes = self._get("/api/v1/nodes")["items"]
        usable = [node for node in nodes if not node["spec"].get("unschedulable")]
        return sum(int(node["status"]["allocatable"].get(resource, 0)) for node in usable)

    def _storage(self) -> str:
        found = {
            one["metadata"]["name"]: one
            for one in self._get("/apis/storage.k8s.io/v1/storageclasses")["items"]
        }
        name = self._wanted.storage_class
        if name is None:
            name = next((key for key, one in found.items() if _is_default(one)), None)
            if name is None:
                raise ConfigError(
                    "no storage class is the default; fix: checkpoints.storageClass, one of "
                    f"{', '.join(found) or '(there are none)'}, or checkpoints.existingClaim"
                )
        elif name not in found:
            raise ConfigError(
                f"there is no storage class {name}; fix: checkpoints.storageClass, one of {', '.join(found) or '(none)'}"
            )
        return f"{name} ({found[name]['provisioner']})"

    def _tokens(self) -> str:
        name = f"{self._wanted.name}-tokens"
        try:
            data = self._get(f"/api/v1/namespaces/{self._namespace}/secrets/{name}").get("data") or {}
        except _Absent:
            raise ConfigError(self._not_installed(f"Secret {name}")) from None
        lacking = [key for key in _TOKENS if not data.get(key)]
        if lacking:
            raise ConfigError(
                f"the Secret {name} has no {' and no '.join(lacking)}; fix: add it, or delete the Secret and `helm upgrade`"
            )
        return f"Secret {name}"

    def _env_service(self) -> str:
        name, namespace = f"{self._wanted.name}-env", self._namespace
        try:
            service = self._get(f"/api/v1/namespaces/{namespace}/services/{name}")
        except _Absent:
            raise ConfigError(self._not_installed(f"Service {name}")) from None
        if service["spec"].get("type") == "ExternalName":
            return f"{name} is an alias of {service['spec']['externalName']} (not asked)"
        query = f"labelSelector=kubernetes.io%2Fservice-name%3D{name}"
        slices = self._get(f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices?{query}")[
            "items"
        ]
        states = [one.get("conditions") or {} for part in slices for one in part.get("endpoints") or []]
        # `ready` is always true where addresses are published before they are; `serving` is the probe's word
        serving = sum(bool(state.get("serving", state.get("ready"))) for state in states)
        if not serving:
            raise ConfigError(
                f"no pod behind the Service {name} is ready ({len(states)} there); fix: kubectl -n {namespace} "
                "describe pod -l 'app.kubernetes.io/component in (env,tunnel)'; with a tunnel: `arpo tunnel up` on "
                "the Mac (while all of its desktops are leased this is no fault)"
            )
        return f"{name}: {serving} ready"

    def _not_installed(self, what: str) -> str:
        return (
            f"there is no {what} in namespace {self._namespace}; fix: helm install {self._wanted.name} charts/arpo, or "
            "--namespace and --name of the release"
        )

    def _get(self, path: str) -> Mapping[str, Any]:
        """An object of the API server. Raises _Absent, and ConfigError for any other refusal."""
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        bare, _, query = path.partition("?")
        pairs = [tuple(pair.split("=", 1)) for pair in query.split("&")] if query else []
        try:
            response = self._api.call_api(
                bare,
                "GET",
                query_params=[(key, unquote(value)) for key, value in pairs],
                header_params={"Accept": "application/json"},
                auth_settings=["BearerToken"],
                _return_http_data_only=True,
                _preload_content=False,
                _request_timeout=_ANSWER_S,
            )
            answer: Mapping[str, Any] = json.loads(response.data)
        except ApiException as error:
            if error.status == 404:
                raise _Absent from None
            who = "a person who may" if error.status == 403 else "the kubeconfig's credentials"
            raise ConfigError(
                f"the API server refuses {bare}: {error.status} {error.reason}; fix: {who}"
            ) from None
        except HTTPError as error:
            raise ConfigError(
                f"no cluster answers at {self._host}: {type(error).__name__}; fix: start it, or KUBECONFIG and "
                "`kubectl config use-context NAME`"
            ) from None
        return answer


def _checked(name: str, look_at: Callable[[], str]) -> Check:
    try:
        return Check(name, True, look_at())
    except ConfigError as error:
        return Check(name, False, str(error))


def _context_namespace() -> str:
    from kubernetes.config import ConfigException, list_kube_config_contexts

    try:
        _, active = list_kube_config_contexts()
    except ConfigException:  # in a pod
        return "default"
    return str(active["context"].get("namespace", "default"))


def _is_default(storage_class: Mapping[str, Any]) -> bool:
    annotations = storage_class["metadata"].get("annotations") or {}
    return annotations.get("storageclass.kubernetes.io/is-default-class") == "true"
