"""The files that a desktop needs of us, laid out once for all desktops of a provider and shown to them read-only.

Invariant: only the guest package, the pure-Python packages that it imports, the template home and a few program names
are in this folder. Nothing else of ARPO may be: task files contain the answers.
"""

from __future__ import annotations

import asyncio
import importlib.util
import re
import shutil
from pathlib import Path

import arpo.guest
from arpo.providers.base import ProviderError

GUEST_PYTHON = "/usr/bin/python3"

_HOME_TEMPLATE = Path(__file__).parent / "home"
_BROWSERS = ("/usr/bin/google-chrome", "/usr/bin/chromium", "/usr/bin/chromium-browser")
# The splash screen would be taken for a window that has been painted; recovery dialogs are of no use on a fresh desktop.
_OFFICE = '#!/bin/sh\nexec /usr/bin/{name} --nologo --norestore "$@"\n'


def packages() -> dict[str, Path]:
    """The pure-Python packages that the guest server imports: file or folder name → where it is.

    Raises ModuleNotFoundError naming the missing one.
    """
    found = {}
    for name in ("mss", "Xlib", "six"):
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError(name)
        origin = Path(spec.origin)
        path = origin.parent if origin.name == "__init__.py" else origin
        found[path.name] = path
    return found


async def lay_out(folder: Path) -> None:
    """Make `folder` with everything in it. Raises `ProviderError`."""
    _copy_all(folder)
    _make_office_start_at_once(folder / "home")
    # By the guest's own Python, whose version may be another; else every desktop would compile them at every boot.
    process = await asyncio.create_subprocess_exec(
        GUEST_PYTHON,
        *("-I", "-m", "compileall", "-q", str(folder)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    if process.returncode:
        raise ProviderError(f"{GUEST_PYTHON} cannot compile the guest server: {output.decode()[-500:]}")


def _copy_all(folder: Path) -> None:
    sources = {"arpo_guest": Path(arpo.guest.__file__ or "").parent, "home": _HOME_TEMPLATE}
    sources |= {f"lib/{name}": path for name, path in packages().items()}
    for name, source in sources.items():
        _copy(source, folder / name)
    programs = folder / "bin"
    programs.mkdir()
    (programs / "python").symlink_to(GUEST_PYTHON)
    browser = next((path for path in _BROWSERS if Path(path).exists()), None)
    if browser:
        (programs / "google-chrome").symlink_to(browser)
    for name in ("soffice", "libreoffice"):
        script = programs / name
        script.write_text(_OFFICE.format(name=name))
        script.chmod(0o755)


def _make_office_start_at_once(home: Path) -> None:
    """Tell LibreOffice that this profile is of its own build; else its first start goes through all extensions.

    That takes half a second, before anything is shown. The profile says whose it is in one small file.
    """
    office = shutil.which("soffice")
    version = Path(office).resolve().parent / "versionrc" if office else None
    if version is None or not version.exists():
        return
    build = re.search(r"^buildid=(.+)$", version.read_text(), re.MULTILINE)
    if build is not None:
        known = home / ".config/libreoffice/4/user/extensions/buildid"
        known.parent.mkdir(mode=0o755)
        known.write_text(build[1])


def _copy(source: Path, target: Path) -> None:
    """Contents only: what is installed read-only or for root alone must be readable for the desktop's user."""
    if source.is_file():
        target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        target.chmod(0o644)
        return
    target.mkdir(mode=0o755, parents=True)
    for path in source.iterdir():
        if path.name != "__pycache__":
            _copy(path, target / path.name)
