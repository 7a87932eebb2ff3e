"""Which launcher a run has."""

from __future__ import annotations

from arpo.config.model import Config
from arpo.trainer.launch.base import Launcher
from arpo.trainer.launch.local import LocalLauncher
from arpo.trainer.progress import Reporter


def launcher_of(config: Config, reporter: Reporter) -> Launcher:
    """The launcher as configured, not yet entered."""
    if config.launcher.kind == "local":
        return LocalLauncher()
    from arpo.trainer.launch.authentication import settle_authentication

    # Ray looks at its environment while it is imported
    settle_authentication(config.launcher)
    from arpo.trainer.launch.on_ray import RayLauncher

    return RayLauncher(config, reporter)
