"""A rendered container of the chart as a container of Podman: its command, arguments, environment, files and rights."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from chart_kit import volume_files

_USER = 10001


def options(documents: list[dict[str, Any]], pod: dict[str, Any], folder: Path) -> Iterator[str]:
    """What `podman run` is given for a pod's only container. folder: for its Secrets and ConfigMaps."""
    spec = pod["spec"]
    (container,) = spec["containers"]
    allowed, user = container["securityContext"], spec["securityContext"]
    assert (user["runAsUser"], user["runAsGroup"], user["fsGroup"]) == (_USER, _USER, _USER)
    yield f"--user={_USER}:{_USER}"
    if allowed["readOnlyRootFilesystem"]:
        yield "--read-only"
    if not allowed["allowPrivilegeEscalation"]:
        yield "--security-opt=no-new-privileges"
    yield from (f"--cap-drop={name}" for name in allowed["capabilities"]["drop"])
    yield from (f"--env={one['name']}={one['value']}" for one in container["env"] if "value" in one)
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    for mount in container["volumeMounts"]:
        volume, there = volumes[mount["name"]], mount["mountPath"]
        here = folder / mount["name"]
        here.mkdir(parents=True, exist_ok=True)
        if "emptyDir" in volume:
            if "sizeLimit" in volume["emptyDir"] and "medium" not in volume["emptyDir"]:
                os.chown(here, _USER, _USER)
                yield f"--volume={here}:{there}"  # what is large is on the node's disk
            else:
                yield f"--mount=type=tmpfs,dst={there},chown=true"
            continue
        for name, text in volume_files(documents, volume):
            (here / name).write_text(text)
            (here / name).chmod(0o440)
            os.chown(here / name, 0, _USER)  # fsGroup
        yield f"--volume={here}:{there}:ro"
    yield f"--entrypoint={container['command'][0]}"


def arguments(pod: dict[str, Any]) -> tuple[str, ...]:
    """What follows the image."""
    (container,) = pod["spec"]["containers"]
    return (*container["command"][1:], *container.get("args", ()))
