"""Can this machine run xvfb desktops? Every missing thing is named together with its fix."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

from arpo.protocol.problems import ConfigError
from arpo.providers.xvfb import guest_files, sandbox
from arpo.providers.xvfb.sandbox import Identity

# program → Debian/Ubuntu package
_PROGRAMS = {
    "Xvfb": "xvfb",
    "xkbcomp": "x11-xkb-utils",
    "openbox": "openbox",
    "dbus-daemon": "dbus-daemon",
    "gio": "libglib2.0-bin",  # opens files with their application
}
_SANDBOX_PROGRAMS = {"bwrap": "bubblewrap", "setpriv": "util-linux", "prlimit": "util-linux"}
_CAP_SYS_ADMIN = 1 << 21


def check_programs(*, sandboxed: bool) -> None:
    """Raise `ConfigError` naming missing programs and Python packages."""
    wanted = _PROGRAMS | (_SANDBOX_PROGRAMS if sandboxed else {})
    missing = {program: package for program, package in wanted.items() if shutil.which(program) is None}
    if not Path(guest_files.GUEST_PYTHON).exists():
        missing[guest_files.GUEST_PYTHON] = "python3"
    if missing:
        raise ConfigError(
            f"xvfb provider: {', '.join(missing)} not found; "
            f"fix: apt-get install {' '.join(dict.fromkeys(missing.values()))}"
        )
    try:
        guest_files.packages()
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"xvfb provider: Python package {error} not found; fix: pip install 'arpo[env-server]'"
        ) from None


def is_privileged() -> bool:
    """Whether we may make namespaces as root; else user namespaces are needed."""
    status = Path("/proc/self/status").read_text()
    effective = next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff"))
    return os.geteuid() == 0 and bool(int(effective, 16) & _CAP_SYS_ADMIN)


async def check_sandbox(identity: Identity, files: Path) -> None:
    """Make a sandbox that does nothing. Raises `ConfigError` with the machine's reason and the fix."""
    process = await asyncio.create_subprocess_exec(
        "bwrap",
        *sandbox.bwrap_options(identity, files, {}),
        "--",
        *sandbox.as_user(identity, ["/usr/bin/true"]),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    _, error = await process.communicate()
    if process.returncode == 0:
        return
    reason = error.decode("utf-8", "replace").strip().replace("\n", "; ") or f"status {process.returncode}"
    raise ConfigError(
        f"xvfb provider: this machine refuses a sandbox: {reason}; "
        f"fix: {_how_to_allow(identity, reason)}, or env.sandbox=none (no isolation)"
    )


def _how_to_allow(identity: Identity, reason: str) -> str:
    if "mount proc" in reason:
        # A container whose /proc is masked in places may not mount another one, whatever else it may do.
        return (
            "let it mount a /proc of its own (Kubernetes: `procMount: Unmasked` with `hostUsers: false`; "
            "podman: --security-opt unmask=ALL; docs/images.md)"
        )
    if identity.privileged:
        return "allow it (in a container: a seccomp profile that permits mount and unshare)"
    if _is_one("/proc/sys/kernel/apparmor_restrict_unprivileged_userns"):
        return "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or run as root"
    return (
        "run as root, or allow user namespaces (in a container: the seccomp profile images/env-server/seccomp.json; "
        "docs/images.md)"
    )


def _is_one(setting: str) -> bool:
    path = Path(setting)
    return path.exists() and path.read_text().strip() == "1"
