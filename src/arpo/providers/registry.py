"""Providers by name. A provider's module is imported only when it is asked for."""

from __future__ import annotations

import importlib
import inspect
import sys
import typing
from collections.abc import Callable, Sequence
from typing import Any, cast

import yaml
from pydantic import TypeAdapter, ValidationError

from arpo.protocol.problems import ConfigError
from arpo.providers.base import Provider

_FACTORIES: dict[str, str] = {
    "docker": "arpo.providers.osworld.docker:DockerProvider",
    "qemu": "arpo.providers.qemu.provider:QemuProvider",
    "simulated": "arpo.providers.simulated.provider:SimulatedProvider",
    "vmware": "arpo.providers.osworld.vmware:VmwareProvider",
    "xvfb": "arpo.providers.xvfb.provider:XvfbProvider",
}
"""Name → `module:class`; the class takes `screen` and the provider's own options as keywords, and `desktops` and
`start_timeout_s` if it wants to know them."""

_OSWORLDS_SCREEN = (1920, 1080)
_SCREENS = {"docker": _OSWORLDS_SCREEN, "qemu": _OSWORLDS_SCREEN, "vmware": _OSWORLDS_SCREEN}


def provider_names() -> list[str]:
    """The providers there are."""
    return sorted(_FACTORIES)


def default_provider() -> str:
    """What desktops come from where nothing else was asked for: `xvfb` on Linux, `vmware` on macOS and Windows."""
    return "xvfb" if sys.platform == "linux" else "vmware"


def default_screen(name: str) -> tuple[int, int]:
    """The screen that a provider's guests have where nothing else was asked for: width and height in pixels."""
    return _SCREENS.get(name, (1280, 720))


def parse_options(options: Sequence[str]) -> dict[str, object]:
    """`KEY=VALUE` options of a command line as keywords for `make_provider`.

    A key that is given several times, or a value like `[a, b]`, is a list. Raises ConfigError.
    """
    parsed: dict[str, list[object]] = {}
    for option in options:
        key, equals, text = option.partition("=")
        if not equals or not key.isidentifier():
            raise ConfigError(
                f"--provider-option {option!r} is no KEY=VALUE; fix: e.g. vm_path=/vms/Ubuntu.vmx"
            )
        values = parsed.setdefault(key, [])
        values.extend(_list(option, text) if text.startswith("[") else [text])
    return {key: values if len(values) > 1 else values[0] for key, values in parsed.items() if values}


def make_provider(
    name: str,
    *,
    screen: tuple[int, int],
    desktops: int | None = None,
    start_timeout_s: float | None = None,
    **options: object,
) -> Provider:
    """A provider of that name; nothing is started.

    screen: width and height in pixels. desktops: how many will be wanted at once. start_timeout_s: what a start may
    take. options: the provider's own, e.g. `sandbox` for xvfb; strings are read as what the option is.
    Raises ConfigError for an unknown provider or option, a wrong value, or a provider that this system cannot have.
    """
    if name not in _FACTORIES:
        raise ConfigError(f"unknown provider {name!r}; known: {', '.join(provider_names())}")
    if name == "xvfb" and sys.platform != "linux":
        raise ConfigError(
            f"provider 'xvfb' needs Linux, and this is {sys.platform}; "
            "fix: --provider vmware, --provider docker, or --provider simulated to try things out"
        )
    module, _, attribute = _FACTORIES[name].partition(":")
    factory = cast(Callable[..., Provider], getattr(importlib.import_module(module), attribute))
    known = set(inspect.signature(factory).parameters)
    told = {"screen": screen, "desktops": desktops, "start_timeout_s": start_timeout_s}
    own = known - set(told)
    unknown = sorted(set(options) - own)
    if unknown:
        raise ConfigError(
            f"provider {name!r} has no option {unknown[0]!r}; known: {', '.join(sorted(own)) or 'none'}"
        )
    hints = typing.get_type_hints(cast(Any, factory).__init__)
    checked = {key: _checked(name, key, value, hints[key]) for key, value in options.items()}
    return factory(
        **{key: value for key, value in told.items() if key in known and value is not None}, **checked
    )


def _checked(provider: str, key: str, value: object, hint: Any) -> object:
    try:
        return TypeAdapter(hint).validate_python(value)
    except ValidationError as error:
        reason = error.errors(include_url=False, include_input=False)[0]["msg"]
        raise ConfigError(f"provider {provider!r}: option {key}={value!r}: {reason}") from None


def _list(option: str, text: str) -> list[object]:
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError:
        values = None
    if not isinstance(values, list):
        raise ConfigError(f"--provider-option {option!r} begins like a list and is none; fix: KEY=[a, b]")
    return values
