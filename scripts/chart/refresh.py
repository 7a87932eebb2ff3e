"""Writes what follows from other files: the chart's presets, its schema, its table of values and the golden renders.

python scripts/chart/refresh.py            write them (`make chart`)
python scripts/chart/refresh.py --check    say what is out of date; exit code 1 if anything is
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent.parent
CHART = ROOT / "charts" / "arpo"
GOLDEN = ROOT / "tests" / "chart" / "golden"
HELM = ROOT / ".cache" / "helm" / "helm-4.1.4"
RENDERS: dict[str, tuple[str, ...]] = {
    "smoke-4gpu": (),
    "smoke-8gpu": (),
    "cpu": (),
    "remote-mac": ("--set", "env.tunnel.authorizedKeys[0]=ssh-ed25519 AAAA mac"),
    "all": (),
    "all-qemu": ("--set", "env.mode=inCluster", "--set", "env.provider=qemu"),
    "all-in-cluster": ("--set", "env.mode=inCluster", "--set", "telemetry.serviceMonitor.enabled=true"),
}
"""Golden render → what is given besides its values file."""


def values_file(render: str) -> Path:
    """The values file of a render."""
    return ROOT / f"values-{'all' if render.startswith('all') else render}.yaml"


def outputs() -> Iterator[tuple[Path, str]]:
    """Every file that follows from others, and what it should hold."""
    for preset in sorted((ROOT / "configs").glob("*.yaml")):
        yield CHART / "presets" / preset.name, preset.read_text(encoding="utf-8")
    yield CHART / "values.schema.json", json.dumps(schema(), indent=1, ensure_ascii=False) + "\n"
    yield CHART / "README.md", readme()
    if HELM.exists():
        for render in RENDERS:
            yield GOLDEN / f"{render}.yaml", golden(render)


def schema() -> dict[str, Any]:
    """The strict schema, with the configuration's own under `config`."""
    from arpo.config.model import Config

    document: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "values.schema.yaml").read_text())
    config = Config.model_json_schema(ref_template="#/definitions/{model}")
    document["definitions"] |= _draft7(config.pop("$defs")) | {"Config": _draft7(config)}
    return document


def _draft7(schema: Any) -> Any:
    """Without what draft 7 calls differently, and without defaults: they are arpo's, not the chart's."""
    if isinstance(schema, list):
        return [_draft7(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {key: _draft7(value) for key, value in schema.items() if key not in ("default", "title", "format")}
    if "prefixItems" in kept:
        kept["items"] = kept.pop("prefixItems")
    return kept


def readme() -> str:
    """The chart's README: every value with what its comment says."""
    lines = (CHART / "values.yaml").read_text(encoding="utf-8").splitlines()
    values = yaml.safe_load("\n".join(lines))
    rows, path, comment = [], [], ""
    for line in lines:
        if found := re.match(r"( *)# -- (.*)", line):
            comment = found[2]
        elif (found := re.match(r"( *)([A-Za-z]+):", line)) and not line.lstrip().startswith("#"):
            path[len(found[1]) // 2 :] = [found[2]]
            if comment:
                default = values
                for part in path:
                    default = default[part]
                shown = json.dumps(default, ensure_ascii=False).replace("|", "\\|")
                rows.append(f"| `{'.'.join(path)}` | `{shown}` | {comment} |")
                comment = ""
    return (
        "# The chart\n\n"
        "How to use it is on [its page](../../docs/kubernetes.md). Every value (`make chart` makes the table):\n\n"
        "| value | default | |\n|---|---|---|\n" + "\n".join(rows) + "\n"
    )


def golden(render: str) -> str:
    """What helm renders, with secrets that differ each time made equal."""
    arguments = ["template", "arpo", str(CHART), "-f", str(values_file(render)), *RENDERS[render]]
    text = subprocess.run([HELM, *arguments], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    return re.sub(
        r"^(  (?:env-server\.token|trainer\.token|metrics\.token|ssh_host_ed25519_key): ).*$",
        r"\1RANDOM",
        text,
        flags=re.M,
    )


def main() -> int:
    """Write or check; returns the exit code."""
    check = "--check" in sys.argv[1:]
    stale = []
    for path, text in outputs():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(str(path.relative_to(ROOT)))
            if not check:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
    for name in stale:
        print(f"{'out of date' if check else 'written'}: {name}")
    if not HELM.exists():
        print(
            f"no {HELM.relative_to(ROOT)}: golden renders left as they are; fix: make setup", file=sys.stderr
        )
    if check and stale:
        print("fix: make chart", file=sys.stderr)
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
