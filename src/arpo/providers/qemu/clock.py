"""The clock of a guest that goes on from a saved state: it stands where it stood when the state was saved."""

from __future__ import annotations

import shlex
import time

from arpo.guest_client import GuestError
from arpo.guest_client.osworld import OsworldGuestClient
from arpo.providers.base import ProviderError

_OFF_S = 2.0
_COMMAND_S = 30.0


async def set_clock(server: str, sudo_password: str) -> None:
    """Set the guest's clock to this host's, and check it. server: host and port of the guest's API.

    Raises ProviderError when the guest's user may not set it.
    """
    client = OsworldGuestClient(f"http://{server}")
    asked = time.time()
    try:
        result = await client.execute(["sh", "-c", _line(asked, sudo_password)], timeout_s=_COMMAND_S)
        says = float(result.output.split()[-1])
    except (GuestError, ValueError, IndexError) as error:
        raise ProviderError(f"the guest's clock could not be set: {error}") from error
    finally:
        await client.close()
    if not asked - _OFF_S <= says <= time.time() + _OFF_S:
        raise ProviderError(
            f"the guest's clock is {says - time.time():+.0f} s off and its user may not set it; fix: --provider-option "
            "sudo_password=… of the guest's user, or a user who may run `sudo date`"
        )


def _line(now: float, sudo_password: str) -> str:
    date = f"date -u -s @{now:.3f}"
    asked = f"printf '%s\\n' {shlex.quote(sudo_password)} | sudo -S -p '' {date}"
    return f"{{ {date} || sudo -n {date} || {asked}; }} >/dev/null 2>&1; date +%s.%N"
