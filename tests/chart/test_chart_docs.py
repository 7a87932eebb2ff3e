"""docs/kubernetes.md: what is in its bash blocks runs here; every other command says that nobody has run it yet."""

from __future__ import annotations

import re
import shlex

import pytest
import yaml
from chart_kit import CHART, ROOT, helm

PAGE = (ROOT / "docs" / "kubernetes.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", PAGE, re.M | re.S)
RUN = [line for language, text in BLOCKS if language == "bash" for line in text.splitlines() if line]
UNRUN = re.compile(r"^(helm (install|upgrade|test|repo)|kubectl|skaffold|arpo tunnel)\b")


@pytest.mark.parametrize("line", RUN)
def test_a_command_of_a_bash_block_runs(line: str, arpo, tmp_path) -> None:
    program, *words = shlex.split(line)
    if program == "helm":
        done = helm(*words)
        assert done.returncode == 0, done.stderr
        return
    assert program == "arpo"  # the doctor: without a cluster it says so, with one it is another test's
    done = arpo(*words, KUBECONFIG=str(tmp_path / "none"))
    assert (done.returncode, "no cluster is configured" in done.stderr) == (2, True)


def test_what_needs_a_cluster_is_marked() -> None:
    lines = [line for language, text in BLOCKS if language != "bash" for line in text.splitlines()]
    commands = [line for line in lines if UNRUN.match(line)]
    assert len(commands) > 5
    assert [line for line in commands if "†" not in line] == []
    assert not any(UNRUN.match(line) for line in RUN)


def test_every_value_and_file_that_is_named_exists() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    for name in re.findall(
        r"`((?:env|rayJob|images|tokens|telemetry|kueue|networkPolicy|checkpoints)\.[A-Za-z_.*]+)", PAGE
    ):
        here = values
        for part in name.rstrip(".").split("."):
            if part == "*" or part in ("url", "token_file", "desktops"):
                break
            assert part in here, name
            here = here[part]
    for path in re.findall(r"`((?:configs|scripts|charts|tests)/[\w./-]+\.ya?ml|values-[\w-]+\.yaml)`", PAGE):
        assert (ROOT / path).exists(), path
