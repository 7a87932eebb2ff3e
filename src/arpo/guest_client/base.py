"""What every guest can do, whether it answers over HTTP or lives in this process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from arpo.protocol.actions import Action


class GuestError(Exception):
    """The guest does not answer, or answers with an error that is its own fault (never the agent's)."""


class GuestFileMissing(Exception):  # noqa: N818 - an answer, not an error of the guest
    """The file that was asked for does not exist in the guest."""


@dataclass(frozen=True)
class CommandResult:
    """What a command in the guest did."""

    returncode: int
    output: str
    error: str


@dataclass(frozen=True)
class Settle:
    """When a screen counts as quiet after input.

    quiet_s: no pixel changed for this long. ceiling_s: go on after this long whatever happens.
    """

    quiet_s: float = 0.12
    ceiling_s: float = 2.0


class GuestClient(Protocol):
    """One running guest. All methods raise `GuestError` when the guest fails."""

    async def screenshot(self) -> bytes:
        """The screen as PNG."""

    async def act(self, actions: Sequence[Action], settle: Settle) -> None:
        """Perform actions in order, then wait until the screen is quiet. Terminal actions are not allowed here.

        Records the phases `act` and `settle` (`arpo.telemetry.phases`): only the guest knows where one ends.
        """

    async def settle(self, settle: Settle) -> None:
        """Wait until the screen is quiet. Records the phase `settle`."""

    async def execute(
        self, command: str | Sequence[str], *, shell: bool = False, timeout_s: float = 120.0
    ) -> CommandResult:
        """Run a command to its end (OSWorld's `/execute`)."""

    async def launch(self, command: str | Sequence[str], *, shell: bool = False) -> None:
        """Start a program and do not wait for it."""

    async def open_file(self, path: str) -> None:
        """Open a file with its application and wait for its window."""

    async def activate_window(self, name: str, *, strict: bool = False, by_class: bool = False) -> bool:
        """Raise a window; False when there is none of that name."""

    async def close_window(self, name: str, *, strict: bool = False, by_class: bool = False) -> bool:
        """Close a window; False when there is none of that name."""

    async def read_file(self, path: str) -> bytes:
        """A file's content. Raises `GuestFileMissing`."""

    async def write_file(self, path: str, data: bytes) -> None:
        """Write a file, making its folders."""

    async def list_directory(self, path: str) -> dict[str, object]:
        """OSWorld's directory tree of `path`."""

    async def terminal_output(self) -> str | None:
        """The text of the open terminal window, if there is one."""

    async def accessibility_tree(self) -> str:
        """The accessibility tree as OSWorld's XML (seconds; only on request)."""

    async def close(self) -> None:
        """Release the connection; the guest goes on."""
