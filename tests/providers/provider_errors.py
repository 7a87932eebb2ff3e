"""What a provider says when it cannot do its work: one line, as a person sees it."""

from __future__ import annotations

import asyncio

import pytest

from arpo.protocol.problems import ConfigError
from arpo.providers.base import Provider, ProviderError


def refusal(provider: Provider) -> str:
    """Why the preflight refuses."""

    async def story() -> None:
        try:
            await provider.preflight()
        finally:
            await provider.close()

    with pytest.raises(ConfigError) as caught:
        asyncio.run(story())
    assert "\n" not in str(caught.value)
    return str(caught.value)


def start_error(provider: Provider) -> str:
    """Why a start fails."""

    async def story() -> None:
        try:
            await provider.start()
        finally:
            await provider.close()

    with pytest.raises(ProviderError) as caught:
        asyncio.run(story())
    return str(caught.value)
