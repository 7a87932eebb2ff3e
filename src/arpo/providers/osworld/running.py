"""A guest of OSWorld's that runs: its client, its addresses, its rest between actions."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import io
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from PIL import Image

from arpo.guest_client import GuestError
from arpo.guest_client.osworld import OsworldGuestClient
from arpo.providers.base import Addresses, Guest, ProviderError

log = logging.getLogger(__name__)

_POLL_S = 0.5


class Rest:
    """Pauses a guest that is not being asked anything, and wakes it for the next request.

    pause, resume: what stops and continues the guest; they raise ProviderError. after_s: how long nothing must have been
    asked; None: never.
    Invariant: no request runs while the guest is paused, and it is not paused while one runs.
    """

    def __init__(
        self,
        pause: Callable[[], Awaitable[None]],
        resume: Callable[[], Awaitable[None]],
        after_s: float | None,
    ) -> None:
        self._pause = pause
        self._resume = resume
        self._after_s = after_s
        self._lock = asyncio.Lock()
        self._requests = 0
        self._paused = False
        self._unsure = False  # a pause or a resumption failed or was cancelled half-way
        self._pausing = False
        self._timer: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def awake(self) -> AsyncIterator[None]:
        """While this is entered, the guest runs. Raises GuestError when it cannot be woken."""
        self._requests += 1
        try:
            await self.resume_guest()
            yield
        except ProviderError as error:
            raise GuestError(str(error)) from error
        finally:
            self._requests -= 1
            if self._requests == 0 and self._after_s is not None and not self._pausing:
                self._forget_timer()
                self._timer = asyncio.create_task(self._pause_later(self._after_s))

    async def pause_guest(self) -> None:
        """Pause it now, unless something is being asked. Raises ProviderError."""
        async with self._lock:
            if not self._paused and self._requests == 0:
                self._unsure = True
                await self._pause()
                self._paused, self._unsure = True, False

    async def resume_guest(self) -> None:
        """Wake it, if it is paused. Raises ProviderError."""
        async with self._lock:
            if not self._paused and not self._unsure:
                return
            was_unsure, self._unsure = self._unsure, True
            try:
                await self._resume()
            except ProviderError:
                if not was_unsure:
                    raise
                # It was not paused, then; else the next request will tell.
            self._paused = self._unsure = False

    async def stay_awake(self) -> None:
        """Never pause it by itself any more: others than our client will talk to it."""
        self._after_s = None
        self._forget_timer()
        await self.resume_guest()

    async def end(self) -> None:
        """The guest is about to be stopped or reset: no pause begins any more, and one that runs has ended."""
        self._after_s = None
        self._forget_timer()
        async with self._lock:
            pass

    async def _pause_later(self, after_s: float) -> None:
        await asyncio.sleep(after_s)
        self._pausing = True  # from here on it is not cancelled half-way
        try:
            await self.pause_guest()
        except ProviderError as error:
            log.warning("a guest could not be paused, and goes on: %s", error)
        finally:
            self._pausing = False

    def _forget_timer(self) -> None:
        if self._timer is not None and not self._pausing:
            self._timer.cancel()


@dataclasses.dataclass(frozen=True)
class Running:
    """A guest with what its provider needs to end it."""

    guest: Guest
    addresses: Addresses
    rest: Rest

    async def exposed(self) -> Guest:
        """The guest with its addresses; from now on it is not paused by itself."""
        await self.rest.stay_awake()
        return dataclasses.replace(self.guest, addresses=self.addresses)

    async def forget(self) -> None:
        """Close the connection and end the rest."""
        await self.rest.end()
        await self.guest.client.close()


async def reached(
    name: str,
    addresses: Addresses,
    rest: Rest,
    screen: tuple[int, int],
    *,
    timeout_s: float,
    fix: str,
    alive: Callable[[], Awaitable[None]],
) -> Running:
    """Wait until the guest's server answers and its screen has the wanted size.

    timeout_s: how long the server may take. fix: what to do when it never answers. alive: raises ProviderError when
    there is nothing to wait for any more. Raises ProviderError.
    """
    client = OsworldGuestClient(f"http://{addresses.server}", awake=rest.awake)
    try:
        size = await _screen_size(client, addresses, timeout_s, fix, alive)
    except BaseException:
        await client.close()
        raise
    if size != screen:
        await client.close()
        got, wanted = ("x".join(map(str, pair)) for pair in (size, screen))
        raise ProviderError(
            f"{name}: the guest's screen is {got}, not {wanted}; fix: --screen {got}, or set it in the guest"
        )
    # Without addresses, so that whoever needs them asks, and the guest is kept awake from then on.
    return Running(Guest(id=name, client=client, screen=screen), addresses, rest)


async def _screen_size(
    client: OsworldGuestClient,
    addresses: Addresses,
    timeout_s: float,
    fix: str,
    alive: Callable[[], Awaitable[None]],
) -> tuple[int, int]:
    last = "nothing was heard of it"
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            while True:
                try:
                    with Image.open(io.BytesIO(await client.screenshot())) as picture:
                        return picture.size
                except (GuestError, OSError) as error:  # OSError: what came is no picture
                    last = str(error)
                await alive()
                await asyncio.sleep(_POLL_S)
    raise ProviderError(
        f"the guest's server at {addresses.server} did not answer in {timeout_s:.0f} s ({last}); fix: {fix}"
    )
