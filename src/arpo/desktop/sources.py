"""Where a task's files come from: `suite:`, `data:` and `http(s):` URLs, and nothing else.

Invariants
- No URL opens a file of this host outside the known suites, and none reaches an address that is not public unless the
  operator allows it (`addresses`).
- No name that a task gives leads outside the episode's folder.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote_to_bytes

import httpx

from arpo.desktop.addresses import AddressPolicy, AddressRefused
from arpo.desktop.downloads import PublicTransport, Resolver, resolve
from arpo.protocol.problems import ConfigError
from arpo.tasks.files import SCHEME, builtin_suites, resolve_suite_url

MAX_DOWNLOAD_BYTES = 256 * 2**20
"""Larger downloads are refused: one is held in memory until the guest has it."""

_SHOWN = 200  # characters of a URL that a message repeats


class SourceError(Exception):
    """A file cannot be had. `permanent`: trying again would not help."""

    def __init__(self, message: str, *, permanent: bool = False) -> None:
        super().__init__(message)
        self.permanent = permanent


class Sources:
    """Fetches files by URL.

    suites: name → folder for `suite:` URLs; default: the suites of this package.
    cache: folder where downloads are kept by URL, for ever; None keeps none.
    timeout_s: longest wait for a connection or for the next bytes of a download.
    allow: what `http(s):` URLs may reach besides public addresses.
    resolver: how host names become addresses; default: as the system does.
    """

    def __init__(
        self,
        *,
        suites: Mapping[str, Path] | None = None,
        cache: Path | None = None,
        timeout_s: float = 60.0,
        allow: AddressPolicy | None = None,
        resolver: Resolver = resolve,
    ) -> None:
        self._suites = builtin_suites() if suites is None else suites
        self._cache = cache
        self._timeout_s = timeout_s
        self._allow = allow or AddressPolicy()
        self._resolver = resolver

    async def fetch(self, url: str) -> bytes:
        """The file's content. Raises SourceError."""
        if not isinstance(url, str):
            raise SourceError(f"a URL is a string, not {url!r:.50}", permanent=True)
        try:
            return await self._fetched(url)
        except ValueError as error:  # a NUL, or what is no Unicode text
            raise SourceError(f"{_shown(url)}: not a URL: {error}", permanent=True) from error

    async def _fetched(self, url: str) -> bytes:
        scheme = url.partition(":")[0].lower()
        if scheme == SCHEME.rstrip(":"):
            try:
                return await asyncio.to_thread(resolve_suite_url(url, self._suites).read_bytes)
            except ConfigError as error:
                raise SourceError(str(error), permanent=True) from error
        if scheme == "data":
            return _decode_data_url(url)
        if scheme in ("http", "https"):
            return await self._download(url)
        raise SourceError(
            f"{_shown(url)}: only suite:, data:, http: and https: URLs are read", permanent=True
        )

    async def _download(self, url: str) -> bytes:
        kept = self._cache / hashlib.sha256(url.encode()).hexdigest() if self._cache else None
        if kept is not None and kept.exists():
            return await asyncio.to_thread(kept.read_bytes)
        content = bytearray()
        transport = PublicTransport(self._allow, self._resolver)
        try:
            async with (
                httpx.AsyncClient(
                    transport=transport, follow_redirects=True, timeout=self._timeout_s
                ) as client,
                client.stream("GET", url) as response,
            ):
                response.raise_for_status()
                length = response.headers.get("Content-Length", "")
                if length.isdecimal() and int(length) > MAX_DOWNLOAD_BYTES:
                    raise _too_large(url)
                async for chunk in response.aiter_bytes():
                    if len(content) + len(chunk) > MAX_DOWNLOAD_BYTES:
                        raise _too_large(url)
                    content += chunk
        except httpx.HTTPStatusError as error:
            status = error.response.status_code
            raise SourceError(
                f"{_shown(url)}: HTTP {status}", permanent=status in (401, 403, 404, 410)
            ) from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            wrong = isinstance(error, httpx.InvalidURL | httpx.UnsupportedProtocol | httpx.TooManyRedirects)
            raise SourceError(f"{_shown(url)}: {type(error).__name__}: {error}", permanent=wrong) from error
        except AddressRefused as error:
            raise SourceError(f"{_shown(url)}: {error}", permanent=True) from error
        whole = bytes(content)
        if kept is not None:
            await asyncio.to_thread(_write_atomically, kept, whole)
        return whole


def inside(folder: Path, name: str) -> Path:
    """The path of a task-given file name inside an episode's folder. Raises SourceError for one that leads outside."""
    if not isinstance(name, str) or not name.strip() or "\0" in name:
        raise SourceError(f"{name!r:.100} is not a file name", permanent=True)
    try:
        path = (folder / name).resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise SourceError(
            f"{name!r:.100} is not a file name: {type(error).__name__}", permanent=True
        ) from error
    if path == folder.resolve() or not path.is_relative_to(folder.resolve()):
        raise SourceError(f"{name!r:.100} leads outside the episode's folder", permanent=True)
    return path


async def store(folder: Path, name: str, content: bytes) -> Path:
    """Write a file under a task-given name into an episode's folder; returns where. Raises SourceError."""
    path = inside(folder, name)
    try:
        await asyncio.to_thread(_write, path, content)
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise SourceError(f"{name!r:.100} is both a file and a folder", permanent=True) from error
    except (OSError, ValueError) as error:  # a name that is too long, or a full disk
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise SourceError(f"{name!r:.100} cannot be written: {reason}") from error
    return path


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _too_large(url: str) -> SourceError:
    return SourceError(f"{_shown(url)}: larger than {MAX_DOWNLOAD_BYTES >> 20} MiB", permanent=True)


def _shown(url: str) -> str:
    return url if len(url) <= _SHOWN and url.isprintable() else f"{url[:_SHOWN]!r}"


def _decode_data_url(url: str) -> bytes:
    header, comma, payload = url.removeprefix("data:").partition(",")
    if not comma:
        raise SourceError("data: URL without a comma", permanent=True)
    if not header.endswith(";base64"):
        return unquote_to_bytes(payload)
    try:
        return base64.b64decode(payload, validate=True)
    except ValueError as error:
        raise SourceError(f"data: URL: {error}", permanent=True) from error


def _write_atomically(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        part.write_bytes(content)
        part.replace(path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            part.unlink()
