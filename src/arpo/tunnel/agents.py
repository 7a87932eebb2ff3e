"""What makes the operating system keep a program running: a launchd agent (macOS) or a systemd user unit (Linux). Pure.

Invariant: no secret is in it, only the paths of files that hold one.
"""

from __future__ import annotations

import plistlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from arpo.protocol.problems import ConfigError

_RESTART_S = 30


@dataclass(frozen=True)
class Agent:
    """A program to be kept running. name: `tunnel` or `env-server`. command: with the program's whole path first."""

    name: str
    description: str
    command: Sequence[str]
    log: Path


@dataclass(frozen=True)
class AgentFile:
    """Where an agent is written, its text, and the commands that begin and end it."""

    path: Path
    text: str
    load: str
    unload: str
    status: str


def agent_file(agent: Agent, system: str, home: Path, uid: int) -> AgentFile:
    """The file of an agent on `system`: `darwin` or `linux`. Raises ConfigError for others."""
    if system == "darwin":
        return _launchd(agent, home, uid)
    if system == "linux":
        return _systemd(agent, home)
    raise ConfigError(
        f"no agent can be installed on {system}; fix: keep `arpo tunnel up` running by other means"
    )


def _launchd(agent: Agent, home: Path, uid: int) -> AgentFile:
    label = f"org.arpo.{agent.name}"
    path = home / "Library" / "LaunchAgents" / f"{label}.plist"
    document = {
        "Label": label,
        "ProgramArguments": list(agent.command),
        "RunAtLoad": True,
        "KeepAlive": True,
        "ThrottleInterval": _RESTART_S,
        "ProcessType": "Interactive",
        "StandardOutPath": str(agent.log),
        "StandardErrorPath": str(agent.log),
        # launchd's own PATH lacks /usr/local/bin and Homebrew's
        "EnvironmentVariables": {"PATH": "/opt/homebrew/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"},
    }
    return AgentFile(
        path=path,
        text=plistlib.dumps(document, sort_keys=False).decode(),
        load=f"launchctl bootstrap gui/{uid} {path}",
        unload=f"launchctl bootout gui/{uid}/{label}",
        status=f"launchctl print gui/{uid}/{label}",
    )


def _systemd(agent: Agent, home: Path) -> AgentFile:
    unit = f"arpo-{agent.name}.service"
    text = f"""[Unit]
Description={agent.description}
StartLimitIntervalSec=0

[Service]
ExecStart={" ".join(_systemd_word(word) for word in agent.command)}
Restart=always
RestartSec={_RESTART_S}
# wrong input stays wrong
RestartPreventExitStatus=2
NoNewPrivileges=yes

[Install]
WantedBy=default.target
"""
    return AgentFile(
        path=home / ".config" / "systemd" / "user" / unit,
        text=text,
        load=f"systemctl --user daemon-reload && systemctl --user enable --now {unit}",
        unload=f"systemctl --user disable --now {unit}",
        status=f"journalctl --user -u {unit} -f",
    )


def _systemd_word(word: str) -> str:
    """A word of ExecStart: quoted, `%` and `$` being the unit file's own."""
    text = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{text}"' if text != word or not text or any(c in text for c in " \t'*;") else text
