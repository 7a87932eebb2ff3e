"""Answers from any OpenAI-compatible server (vLLM, SGLang, llama.cpp, OpenAI, a gateway): `POST <url>/chat/completions`.

Invariants
- The API key is in the request's header and nowhere else: whatever the server answers, no message shows it.
- Whatever goes wrong is an EngineError that says what the server said, or an EngineUnusableError when every other request
  would fare no better. No httpx error leaves this module.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import httpx

from arpo.client.limits import Backoff
from arpo.config.sections import OpenAISection
from arpo.protocol.problems import ConfigError
from arpo.rollout.engines.base import EngineError, EngineUnusableError, Message, Sampling, Utterance

KEY_VARIABLE = "OPENAI_API_KEY"
_BACKOFF = Backoff(first_s=0.5, longest_s=30.0)
_WRITE_S = 60.0
_TRY_AGAIN = frozenset({408, 425, 429})
_HOPELESS = frozenset({401, 403, 404, 405})
_MOST_SAID = 300
"""Characters of a server's message that are shown."""
_SEED_BITS = 31  # some servers keep seeds in 32 signed bits


def api_key(section: OpenAISection) -> str | None:
    """The key from `api_key_file`, else from the environment's OPENAI_API_KEY; None: the server wants none.

    Raises ConfigError; no message shows a key.
    """
    if section.api_key_file is None:
        key, source = os.environ.get(KEY_VARIABLE, "").strip(), KEY_VARIABLE
        if not key:
            return None
    else:
        source = f"engine.openai.api_key_file={section.api_key_file}"
        try:
            key = section.api_key_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no text"
            raise ConfigError(f"{source} cannot be read: {reason}; fix: a file with the key alone") from error
    if not key.isascii() or not key.isprintable() or " " in key or not key:
        raise ConfigError(f"{source} holds no API key; fix: the key alone, on one line")
    return key


def base_url(url: str) -> str:
    """The URL that `/chat/completions` is appended to; a server's root stands for its `/v1`."""
    return url.rstrip("/") if urlsplit(url).path.strip("/") else url.rstrip("/") + "/v1"


class OpenAIEngine:
    """A `WordsEngine`. Made and used in one event loop.

    A request that meets an overloaded, failing or absent server is sent again, with growing pauses or when the server
    says, for `outage_s` seconds from the first failure. transport: another httpx transport, for tests.
    """

    policy_version = 0

    def __init__(
        self, section: OpenAISection, key: str | None, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        if section.url is None or section.model is None:
            raise ConfigError("engine.kind=openai needs engine.openai.url and engine.openai.model")
        self._section = section
        self._key = key
        self._url = base_url(section.url)
        self._http = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(
                connect=section.connect_timeout_s, read=section.timeout_s, write=_WRITE_S, pool=None
            ),
            limits=httpx.Limits(max_connections=None, keepalive_expiry=20.0),
            # a proxy that the environment sets for the internet cannot reach this machine's own servers
            trust_env=urlsplit(section.url).hostname not in ("localhost", "127.0.0.1", "::1"),
            transport=transport,
        )

    async def say(self, messages: Sequence[Message], sampling: Sampling) -> Utterance:
        """The assistant turn that follows; see `WordsEngine.say`. An answer without text is an empty one."""
        body = self._body(messages, sampling)
        until: float | None = None
        waited = 0.0
        attempt = 0
        while True:
            try:
                return Utterance(await self._once(body), queued_s=waited)
            except _TryAgainError as error:
                attempt += 1
                now = time.monotonic()
                until = until or now + self._section.outage_s
                pause_s = max(_BACKOFF.pause_s(attempt - 1), error.after_s)
                if now + pause_s > until:
                    raise EngineError(f"{self._url}: {error} (tried {attempt}×)") from error
            waited += pause_s
            await asyncio.sleep(pause_s)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    def _body(self, messages: Sequence[Message], sampling: Sampling) -> bytes:
        fields: dict[str, Any] = {
            "model": self._section.model,
            "messages": [_wire(message) for message in messages],
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_new_tokens,
        }
        if sampling.seed is not None:
            fields["seed"] = sampling.seed % 2**_SEED_BITS
        fields |= self._section.parameters
        return json.dumps({name: value for name, value in fields.items() if value is not None}).encode()

    async def _once(self, body: bytes) -> str:
        """One attempt. Raises _TryAgainError, EngineError, EngineUnusableError."""
        try:
            response = await self._http.post(
                f"{self._url}/chat/completions", content=body, headers={"Content-Type": "application/json"}
            )
        except httpx.ReadTimeout as error:
            raise _TryAgainError(f"no answer within {self._section.timeout_s:g} s") from error
        except (httpx.TransportError, httpx.DecodingError) as error:
            raise _TryAgainError(self._hidden(str(error) or type(error).__name__)) from error
        except httpx.HTTPError as error:
            raise EngineError(self._hidden(f"{self._url}: {error}")) from error
        if response.is_success:
            return self._text(response)
        said = _said(response)
        message = self._hidden(f"status {response.status_code}: {said.text}")
        if response.status_code in _HOPELESS or said.code == "insufficient_quota":
            raise EngineUnusableError(
                f"{self._url} refuses every request: {message}; "
                f"fix: engine.openai.url, engine.openai.model or the API key"
            )
        if response.status_code in _TRY_AGAIN or response.status_code >= httpx.codes.INTERNAL_SERVER_ERROR:
            raise _TryAgainError(message, _retry_after_s(response.headers))
        raise EngineError(f"{self._url}: {message}")

    def _text(self, response: httpx.Response) -> str:
        try:
            content = response.json()["choices"][0]["message"].get("content")
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise EngineError(
                self._hidden(f"{self._url}: no chat completion: {response.text[:_MOST_SAID]!r}")
            ) from error
        if isinstance(content, list):
            content = "".join(part.get("text", "") for part in content if isinstance(part, dict))
        return content if isinstance(content, str) else ""

    def _hidden(self, message: str) -> str:
        """A message without the key, which some servers repeat."""
        return message.replace(self._key, "***") if self._key else message


class _TryAgainError(Exception):
    """The same request may succeed later. after_s: seconds that the server asked to wait."""

    def __init__(self, reason: str, after_s: float = 0.0) -> None:
        super().__init__(reason)
        self.after_s = after_s


def _wire(message: Message) -> dict[str, Any]:
    if not message.picture:
        return {"role": message.role, "content": message.text}
    url = f"data:{message.media_type};base64,{base64.b64encode(message.picture).decode()}"
    return {"role": message.role, "content": [{"type": "image_url", "image_url": {"url": url}}]}


@dataclass(frozen=True)
class _Said:
    text: str
    code: str | None = None


def _said(response: httpx.Response) -> _Said:
    """What a refusal says: OpenAI's `{"error": {"message", "code"}}`, the shapes of its imitators, or plain text."""
    try:
        document = response.json()
    except ValueError:
        document = None
    error = document.get("error", document) if isinstance(document, dict) else None
    if isinstance(error, dict):
        text = error.get("message") or error.get("detail") or error
        code = error.get("code") or error.get("type")
    else:
        text, code = error or response.text or response.reason_phrase, None
    line = " ".join(str(text).split())
    return _Said(line[:_MOST_SAID], code if isinstance(code, str) else None)


def _retry_after_s(headers: Mapping[str, str]) -> float:
    """Seconds of a `Retry-After` header (RFC 9110, 10.2.3: a number or a date); 0 when there is none to read."""
    value = headers.get("retry-after", "")
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return 0.0
