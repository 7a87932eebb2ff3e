"""The manifest of a checkpoint: every file of its folder with size and sha256.

Invariant: it is written last, when all other files are on the disk. A folder whose sizes are not the manifest's was cut
short; one whose sums are not was damaged later.
"""

from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from arpo.files import sync

MANIFEST = "manifest.json"


def seal(folder: Path) -> None:
    """Flush everything below the folder to the disk and write its manifest."""
    paths = sorted(folder.rglob("*"))
    for path in paths:
        sync(path)
    files = [path for path in paths if path.is_file()]
    document = {
        str(path.relative_to(folder)): {"size": path.stat().st_size, "sha256": digest}
        for path, digest in zip(files, _digests(files), strict=True)
    }
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps({"files": document}, indent=1), encoding="utf-8")
    sync(manifest)
    sync(folder)


def is_complete(folder: Path) -> bool:
    """Whether the manifest and every file it names are there, with the right sizes."""
    try:
        files = _files(folder)
        return all((folder / name).stat().st_size == entry["size"] for name, entry in files.items())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def damage(folder: Path) -> str | None:
    """What is wrong with a complete folder, in a few words; None when every byte is as it was written.

    It reads every file once.
    """
    try:
        files = _files(folder)
        paths = [folder / name for name in files]
        for name, entry, digest in zip(files, files.values(), _digests(paths), strict=True):
            if digest != entry["sha256"]:
                return f"{name} is not as it was written"
    except OSError as error:
        return str(error)
    return None


def _files(folder: Path) -> dict[str, dict[str, int | str]]:
    files: dict[str, dict[str, int | str]] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))[
        "files"
    ]
    return files


def _digests(paths: list[Path]) -> list[str]:
    """sha256 of files; those that many ranks wrote are read beside each other."""
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(_digest, paths))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
