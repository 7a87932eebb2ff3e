"""VMware's command line: where it is, what it says, and what to do about that."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

from arpo.protocol.problems import ConfigError
from arpo.providers.base import ProviderError
from arpo.providers.osworld.attempt import Attempt, CommandFailed
from arpo.providers.osworld.upstream import vmrun_product

_USUAL_PLACES = {
    "darwin": (
        "/Applications/VMware Fusion.app/Contents/Library/vmrun",
        "/Applications/VMware Fusion.app/Contents/Public/vmrun",
    ),
    "win32": (
        r"C:\Program Files (x86)\VMware\VMware Workstation\vmrun.exe",
        r"C:\Program Files\VMware\VMware Workstation\vmrun.exe",
    ),
}
_PRODUCT = {"darwin": "VMware Fusion (13 or later)"}

# What vmrun says → what to do. The first that matches counts.
_FIXES: tuple[tuple[str, str], ...] = (
    (
        r"Tools are not running",
        "install and start the VMware Tools (open-vm-tools) in the machine, take the snapshot with them running",
    ),
    (
        r"already in use|is locked|in use by another|Another instance",
        "quit the VMware window or program that has the machine open; if there is none, remove {locks}",
    ),
    (
        r"snapshot (does not|doesn't) exist|Invalid snapshot|no snapshot",
        "take it: vmrun {product} snapshot {vm} {snapshot}",
    ),
    (
        r"cannot be found|not found|No such file|Cannot open VM|not a valid virtual machine",
        "check that {vm} is a machine that VMware itself can open",
    ),
    (r"insufficient permissions|permission", "give this user access to {vm} and to VMware"),
    (r"version was not found|not connect to host|not installed", "install {wanted} or check its licence"),
    (
        r"unable to get the IP|no IP|IP address|getGuestIPAddress .*did not end",
        "give the machine a NAT or bridged network adapter with DHCP, and see in its window that it boots",
    ),
    (r"not powered on", "look at the machine's vmware.log: it ended by itself"),
    (r"[Nn]ot enough (physical )?memory|disk space", "free memory or disk space, or run fewer machines"),
    (r"not done after", "see in VMware's window whether it asks something there, or raise --start-timeout-s"),
)


def find_vmrun(given: str | None) -> str:
    """The program's path. Raises ConfigError with the fix."""
    found: str | None
    if given is not None:
        found = shutil.which(Path(given).expanduser())
        if found is None:
            raise ConfigError(
                f"vmware provider: vmrun={given} is no program; fix: the path of VMware's vmrun"
            )
        return found
    for place in ("vmrun", *_USUAL_PLACES.get(sys.platform, ())):
        found = shutil.which(place)
        if found is not None:
            return found
    raise ConfigError(
        f"vmware provider: vmrun not found; fix: install {_wanted()}, put vmrun on PATH, "
        "or --provider-option vmrun=PATH"
    )


class Vmrun:
    """Single commands for one machine, beside those that OSWorld's class gives."""

    def __init__(self, program: str, attempt: Attempt) -> None:
        self._program = program
        self._attempt = attempt

    def run(self, *arguments: str) -> str:
        """Run a command to its end; returns what it printed."""
        return self._attempt.command([self._program, *vmrun_product(), *arguments])

    def running(self) -> set[Path]:
        """The machines that run, paused ones included."""
        return {Path(line).resolve() for line in self.run("list").splitlines()[1:] if line.strip()}

    def snapshots(self, vm: Path) -> list[str]:
        """The names of a machine's snapshots."""
        return [line.strip() for line in self.run("listSnapshots", str(vm)).splitlines()[1:]]


def is_booting(said: str) -> bool:
    """Whether a failed command may work a little later, when the guest has booted further."""
    return (
        re.search(r"Tools are not running|unable to get the IP|IP address", said, re.IGNORECASE) is not None
    )


def explained(error: ProviderError, vm: Path, snapshot: str) -> ProviderError:
    """The error with the fix, where it is known."""
    said = _last_said(error)
    for pattern, fix in _FIXES:
        if re.search(pattern, said, re.IGNORECASE):
            locks = ", ".join(str(path) for path in sorted(vm.parent.glob("*.lck"))) or f"{vm.parent}/*.lck"
            fix = fix.format(
                vm=vm, snapshot=snapshot, locks=locks, product=" ".join(vmrun_product()), wanted=_wanted()
            )
            return ProviderError(f"{vm.name}: {said}; fix: {fix}")
    return ProviderError(f"{vm.name}: {said}")


def _last_said(error: ProviderError) -> str:
    if isinstance(error, CommandFailed):
        return error.said.removeprefix("Error: ")
    return str(error)


def _wanted() -> str:
    return _PRODUCT.get(sys.platform, "VMware Workstation Pro")
