"""Who may give orders to the Ray cluster of a run. Imports no ray, as ray looks at its environment when it is imported.

Invariant: a cluster that a run starts for itself takes orders from that run alone.
"""

from __future__ import annotations

import os
import secrets
import sys

from arpo.config.sections import LauncherSection


def cluster_address(section: LauncherSection) -> str | None:
    """The cluster that is there already; None: the run starts one of its own."""
    return section.address or os.environ.get("RAY_ADDRESS") or None


def settle_authentication(section: LauncherSection) -> None:
    """Set RAY_AUTH_MODE, and for a cluster of the run's own a token that nobody else has.

    Ray's ports are open to the network, and who may use them may run any program. Where the mode is not set, Ray writes a
    token file into the home folder, and clusters that are started later refuse whoever does not know of it. A program that
    has imported ray before has made that choice.
    """
    if "ray" in sys.modules:
        return
    if cluster_address(section) is not None:
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    elif os.environ.get("RAY_AUTH_MODE") != "token" or "RAY_AUTH_TOKEN" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
