"""Starts, resets and stops sandboxed desktops on this machine."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import logging
import secrets
from pathlib import Path
from typing import Literal

from arpo.providers.base import Addresses, Guest, ProviderError
from arpo.providers.forward import Forwarder
from arpo.providers.xvfb import guest_files, preflight
from arpo.providers.xvfb.box import Box
from arpo.providers.xvfb.run_folder import RunFolder
from arpo.providers.xvfb.sandbox import Identity

_log = logging.getLogger(__name__)

_START_TIMEOUT_S = 60.0
_CHROMIUM_PORT = 9222
_VLC_PORT = 8080

# As root every desktop is a user of its own: 61000 to 61183 belong to nobody on Debian, Ubuntu and with systemd.
_UIDS = range(61000, 61184)
_USER_NAMESPACE_UID = 1000


class XvfbProvider:
    """Implements `Provider`: Xvfb, openbox and real applications, each desktop in a sandbox of its own.

    A reset is a fresh sandbox, so a desktop is clean by construction. `sandbox="none"` runs the same processes without
    isolation, for machines that refuse namespaces.
    """

    name = "xvfb"

    def __init__(
        self, *, screen: tuple[int, int] = (1280, 720), sandbox: Literal["auto", "none"] = "auto"
    ) -> None:
        self._screen = screen
        self._sandboxed = sandbox == "auto"
        self._boxes: dict[str, Box] = {}
        self._forwarders: dict[str, list[Forwarder]] = {}
        self._numbers = itertools.count(1)
        self._uids = itertools.cycle(_UIDS)
        self._folder: RunFolder | None = None
        self._preparing = asyncio.Lock()
        if not self._sandboxed:
            _log.warning(
                "xvfb desktops run WITHOUT a sandbox: programs on them, and whatever an agent types, "
                "can read and change everything that this user can"
            )

    async def preflight(self) -> None:
        """Check programs and namespaces. Raises `ConfigError` that names what is missing and the fix."""
        preflight.check_programs(sandboxed=self._sandboxed)
        identity = self._next_identity()
        if identity:
            await preflight.check_sandbox(identity, (await self._prepared_folder()) / "guest")

    async def start(self) -> Guest:
        """Start a clean desktop and wait until it serves. Raises `ProviderError`."""
        folder = await self._prepared_folder()
        number = next(self._numbers)
        box = Box(folder / str(number), folder / "guest", self._screen, self._next_identity())
        guest = Guest(id=f"xvfb-{number}-{secrets.token_hex(3)}", client=box.client, screen=self._screen)
        self._boxes[guest.id] = box
        try:
            await box.open(_START_TIMEOUT_S)
        except BaseException:
            self._boxes.pop(guest.id, None)
            raise
        return guest

    async def reset(self, guest: Guest) -> Guest:
        """A fresh desktop in place of a used one. Raises `ProviderError`; the used one is gone either way."""
        starting, stopping = asyncio.create_task(self.start()), asyncio.create_task(self.stop(guest))
        try:
            await asyncio.shield(stopping)
            return await starting
        except BaseException:
            # Cancelled: nobody will ever know of the fresh one.
            starting.cancel()
            fresh, _ = await asyncio.gather(starting, stopping, return_exceptions=True)
            if isinstance(fresh, Guest):
                await asyncio.shield(self.stop(fresh))
            raise

    async def expose(self, guest: Guest) -> Guest:
        """The same guest with addresses on this machine's loopback, for clients that need host and port.

        `server` is the guest API, `chromium` and `vlc` the ports 9222 and 8080 inside. Anyone on this machine can
        connect to them; they close with the guest.
        """
        box = self._boxes.get(guest.id)
        if box is None:
            raise ProviderError(f"there is no guest {guest.id}")
        addresses = []
        for port in (None, _CHROMIUM_PORT, _VLC_PORT):
            forwarder = Forwarder(str(box.socket_path), port)
            self._forwarders.setdefault(guest.id, []).append(forwarder)
            addresses.append(await forwarder.open())
        server, chromium, vlc = addresses
        return dataclasses.replace(guest, addresses=Addresses(server=server, chromium=chromium, vlc=vlc))

    async def pause(self, guest: Guest) -> None:
        """Nothing: an idle desktop costs next to no CPU."""

    async def resume(self, guest: Guest) -> None:
        """Nothing."""

    async def stop(self, guest: Guest) -> None:
        """End the desktop; no process and no file of it is left."""
        await self._stop(guest.id)

    async def close(self) -> None:
        """Stop every desktop and remove this provider's folder."""
        async with self._preparing:
            await asyncio.gather(*(self._stop(guest_id) for guest_id in list(self._boxes)))
            if self._folder is not None:
                self._folder.remove()
                self._folder = None

    async def _prepared_folder(self) -> Path:
        """This provider's folder, with the guest files in it."""
        async with self._preparing:
            if self._folder is None:
                folder = RunFolder()
                try:
                    await guest_files.lay_out(folder.path / "guest")
                except BaseException:
                    folder.remove()
                    raise
                self._folder = folder
            return self._folder.path

    async def _stop(self, guest_id: str) -> None:
        for forwarder in self._forwarders.pop(guest_id, ()):
            await forwarder.close()
        box = self._boxes.pop(guest_id, None)
        if box is not None:
            await asyncio.shield(box.close())

    def _next_identity(self) -> Identity | None:
        if not self._sandboxed:
            return None
        if preflight.is_privileged():
            return Identity(next(self._uids), privileged=True)
        return Identity(_USER_NAMESPACE_UID, privileged=False)
