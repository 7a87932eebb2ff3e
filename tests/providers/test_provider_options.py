"""Provider options as a command line has them."""

from __future__ import annotations

import pytest

from arpo.protocol.problems import ConfigError
from arpo.providers.registry import make_provider, parse_options, provider_names


def test_options_are_keywords_and_several_of_a_key_are_a_list() -> None:
    assert parse_options(["vm_path=/a b/x.vmx", "snapshot=a=b", "gui=true"]) == {
        "vm_path": "/a b/x.vmx", "snapshot": "a=b", "gui": "true",
    }  # fmt: skip
    assert parse_options(["vm_path=a", "vm_path=b"]) == {"vm_path": ["a", "b"]}
    assert parse_options(["vm_path=[a, b]", "vm_path=c"]) == {"vm_path": ["a", "b", "c"]}
    assert parse_options(["vm_path=[a]"]) == {"vm_path": "a"}


@pytest.mark.parametrize("option", ["vm_path", "=x", "vm path=x", "vm_path=[a", "vm_path=[a]b: ["])
def test_what_is_no_option_is_refused_with_an_example(option: str) -> None:
    with pytest.raises(ConfigError, match="fix:"):
        parse_options([option])


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("vmware", {"gui": "maybe"}, "option gui='maybe': .*boolean"),
        ("vmware", {"vm_path": 3}, "option vm_path=3"),
        ("docker", {"cores": "many"}, "option cores='many': .*integer"),
        ("docker", {"snapshot": "x"}, "no option 'snapshot'; known: .*port_base"),
        ("docker", {"screen_size": "x"}, "no option 'screen_size'"),
        ("xvfb", {"sandbox": "some"}, "option sandbox='some': .*'auto' or 'none'"),
        ("nothing", {}, "unknown provider 'nothing'; known: docker, qemu, simulated, vmware, xvfb"),
    ],
)
def test_wrong_options_are_refused_by_name(name: str, options: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make_provider(name, screen=(1280, 720), **options)


def test_every_provider_can_be_made_and_told_what_the_server_knows() -> None:
    for name in provider_names():
        assert make_provider(name, screen=(1280, 720), desktops=2, start_timeout_s=30.0).name == name


def test_strings_become_what_the_option_is() -> None:
    provider = make_provider("simulated", screen=(640, 480), fail_resets="2", step_latency_s="0.5")
    assert (provider._failures_left, provider._step_latency_s) == (2, 0.5)  # type: ignore[attr-defined]
