"""`arpo tunnel install`: files that launchd and systemd take, with paths and no secret in them; wrong input is refused."""

from __future__ import annotations

import plistlib
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from arpo.cli import app
from arpo.protocol.problems import ConfigError
from arpo.tunnel.address import Destination, Endpoint, parse_destination, parse_forward
from arpo.tunnel.agents import Agent, agent_file

SECRET = "b3BlbnNzaC1rZXktdjEAAAAA"


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "my keys" / "tunnel_key"
    path.parent.mkdir()
    path.touch(mode=0o600)
    path.write_text(f"-----BEGIN OPENSSH PRIVATE KEY-----\n{SECRET}\n-----END OPENSSH PRIVATE KEY-----\n")
    return path


def install(arpo, home: Path, key: Path, *more: str, command: str = "install", **env: str):
    return arpo("tunnel", command, *(("--to", "ssh://arpo@h", "--key", str(key)) if command != "uninstall" else ()), *more,
                HOME=str(home), XDG_CONFIG_HOME=str(home / ".config"), **env)  # fmt: skip


def test_a_systemd_unit_is_written_shown_and_removed(arpo, tmp_path: Path, key: Path) -> None:
    shown = install(arpo, tmp_path, key, "--print", "--otlp", "jaeger:4318")
    unit = tmp_path / ".config/systemd/user/arpo-tunnel.service"
    assert not unit.exists()
    assert str(unit) in shown.stdout
    made = install(arpo, tmp_path, key, "--with-env-server", "--provider simulated --capacity 2")
    assert made.returncode == 0, made.stderr
    assert (
        "start:   systemctl --user daemon-reload && systemctl --user enable --now arpo-tunnel.service"
        in made.stdout
    )
    server = unit.with_name("arpo-env-server.service")
    for file in (unit, server):
        assert SECRET not in file.read_text()
        if shutil.which("systemd-analyze"):
            verified = subprocess.run(
                ["systemd-analyze", "--user", "verify", str(file)],
                capture_output=True,
                text=True,
                check=False,
            )
            assert file.name not in verified.stderr, verified.stderr
    words = shlex.split(unit.read_text().partition("ExecStart=")[2].partition("\n")[0])
    assert words[1:7] == ["tunnel", "up", "--to", "ssh://arpo@h:2222", "--key", str(key)]
    assert "--host 127.0.0.1 --port 18082 --provider simulated --capacity 2" in server.read_text()
    removed = install(arpo, tmp_path, key, command="uninstall")
    assert "systemctl --user disable --now arpo-tunnel.service" in removed.stdout
    assert not unit.exists()
    assert not server.exists()
    assert install(arpo, tmp_path, key, command="uninstall").returncode == 1


def test_a_launchd_agent_runs_the_command_at_login_and_again(tmp_path: Path) -> None:
    command = ["/opt/arpo & co/bin/arpo", "tunnel", "up", "--to", "ssh://arpo@h:2222", "--key", "/Users/me/k"]
    file = agent_file(Agent("tunnel", "", command, tmp_path / "log"), "darwin", Path("/Users/me"), 501)
    assert file.path == Path("/Users/me/Library/LaunchAgents/org.arpo.tunnel.plist")
    read = plistlib.loads(file.text.encode())
    assert read["ProgramArguments"] == command
    assert read["Label"] == "org.arpo.tunnel"
    assert read["RunAtLoad"] is True
    assert read["KeepAlive"] is True
    assert file.load == f"launchctl bootstrap gui/501 {file.path}"


def test_no_other_system_is_promised_anything(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="win32"):
        agent_file(Agent("tunnel", "", [], tmp_path), "win32", tmp_path, 0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--to", "http://h"], "is no ssh URL; fix: --to ssh://"),
        (["--to", "ssh://a:secret@h"], "holds a password"),
        (["--to", "ssh://h:99999"], "fix: --to"),
        (["--to", "ssh://-oProxyCommand=x"], "does not name a user and a host"),
        (["--to", "ssh://-l@h"], "does not name a user and a host"),
        (["--env", "18082"], "is not host:port"),
        (["--otlp", "jaeger"], "fix: e.g. --otlp 127.0.0.1:4318:jaeger:4318"),
        (["--remote", "*:0"], "is no port"),
        (["--host-key", "nonsense"], "is no key and no file with one"),
        (["--ssh-option", "-oX"], "is not Keyword=value"),
        (["--key", "/nowhere"], "cannot be read"),
    ],
)
def test_wrong_input_is_refused_with_the_fix(key: Path, arguments: list[str], words: str) -> None:
    result = CliRunner().invoke(app, ["tunnel", "up", "--to", "ssh://arpo@h", "--key", str(key), *arguments])
    assert isinstance(result.exception, ConfigError)
    assert words in str(result.exception)
    assert "secret" not in str(result.exception)


@pytest.mark.parametrize(
    ("text", "mode", "words"),
    [
        ("ssh-ed25519 AAAA me", 0o600, "is the public key"),
        ("hello", 0o600, "is no private key"),
        ("-----BEGIN OPENSSH PRIVATE KEY-----", 0o644, "chmod 600"),
    ],
)
def test_a_key_that_ssh_would_not_use_is_refused(
    arpo, tmp_path: Path, text: str, mode: int, words: str
) -> None:
    path = tmp_path / "key.pub"
    path.write_text(text)
    path.chmod(mode)
    refused = arpo("tunnel", "up", "--to", "ssh://arpo@h", "--key", str(path))
    assert refused.returncode == 2
    assert words in refused.stderr


def test_a_machine_without_ssh_is_told(arpo, key: Path) -> None:
    refused = arpo("tunnel", "up", "--to", "ssh://arpo@h", "--key", str(key), PATH="/nowhere")
    assert refused.returncode == 2
    assert "fix: install the OpenSSH client" in refused.stderr


def test_addresses_are_read() -> None:
    assert parse_destination("ssh://me@[::1]:22") == Destination("me", "::1", 22)
    assert str(parse_destination("ssh://[::1]")) == "ssh://arpo@[::1]:2222"
    assert parse_destination("ssh://h").known_as == "[h]:2222"
    forward = parse_forward("4318:jaeger:4319", "--otlp")
    assert (forward.listen, forward.connect) == (Endpoint("127.0.0.1", 4318), Endpoint("jaeger", 4319))
    assert str(parse_forward("jaeger:4318", "--otlp")) == "127.0.0.1:4318:jaeger:4318"
    assert str(parse_forward("[::1]:1:[fd00::2]:2", "--otlp")) == "[::1]:1:[fd00::2]:2"
