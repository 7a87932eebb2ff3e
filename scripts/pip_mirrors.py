"""Write this machine's pip settings as a pip.conf for image builds, and print the mounts that they need, one word a line.

python scripts/pip_mirrors.py FILE

Only where packages come from is carried over. The file is given to a build as a secret: an index's URL may hold a password.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

_CARRIED = (
    "index-url",
    "extra-index-url",
    "find-links",
    "trusted-host",
    "proxy",
    "timeout",
    "default-timeout",
    "cert",
)
_CERTIFICATES = "/run/build-certificates.crt"  # a name of its own: what is mounted cannot be installed over


def settings() -> dict[str, str]:
    """Option → value as pip itself sees them; the environment wins over files, as it does for pip."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    found: dict[str, str] = {}
    for line in sorted(listed.splitlines(), key=lambda line: line.startswith(":env:")):
        name, _, value = line.partition("=")
        option = name.rpartition(".")[2]
        if option in _CARRIED:
            found[option] = ast.literal_eval(value)
    return found


def local_folders(values: list[str]) -> list[Path]:
    """The folders of this machine that these settings name. A simple index's links lead to its neighbours, so it is the
    folder above that is needed.
    """
    folders = []
    for value in values:
        for word in value.split():
            url = urlsplit(word)
            if url.scheme in ("", "file") and Path(url.path).is_dir():
                path = Path(url.path)
                folders.append(path.parent if path.name == "simple" else path)
    return list(dict.fromkeys(folders))


def main() -> None:
    """Write the file named on the command line and print Podman's options."""
    target = Path(sys.argv[1])
    found = settings()
    mounts = [(folder, str(folder)) for folder in local_folders(list(found.values()))]
    certificates = found.get("cert")
    if certificates:
        mounts.append((Path(certificates), _CERTIFICATES))
        found["cert"] = _CERTIFICATES
    target.touch(mode=0o600)
    target.write_text("[global]\n" + "".join(f"{option} = {value}\n" for option, value in found.items()))
    for source, inside in mounts:
        print(f"--volume={source}:{inside}:ro")


if __name__ == "__main__":
    main()
