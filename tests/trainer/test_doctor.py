from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import pytest

from arpo.config.load import load_config
from arpo.protocol.problems import ConfigError
from arpo.trainer.doctor import Check, preflight, raise_if_failed

SMALL = ("tasks.set=smoke", "trainer.tasks_per_step=4")


def failures(*overrides: str, hardware: bool = False) -> dict[str, str]:
    checks = preflight(load_config(None, [*SMALL, *overrides]), hardware=hardware)
    return {check.name: check.detail for check in checks if not check.ok}


def test_a_configuration_that_fits_passes():
    assert failures() == {}


@pytest.mark.parametrize(
    ("overrides", "name", "words"),
    [
        (["rollout.group_size=1"], "settings", "no advantage"),
        (["tasks.suite=no-such-suite"], "tasks", "no-such-suite"),
        (["tasks.set=no-such-set"], "tasks", "no-such-set"),
        (["tasks.eval_set=no-such-set"], "tasks", "no-such-set"),
        (["trainer.tasks_per_step=999"], "batch", "trainer.tasks_per_step=999 is larger than the"),
        (["env.provider=simulated"], "provider", "env.provider=xvfb"),
    ],
)
def test_what_cannot_work_is_found_without_the_machine(overrides, name, words):
    assert words in failures(*overrides)[name]


def test_a_remote_env_server_may_have_any_provider(tmp_path):
    assert failures("env.provider=simulated", "env.url=http://h:1", f"env.token_file={tmp_path}/t") == {}


def test_imitation_needs_a_demonstration_of_every_task(tmp_path):
    folder = tmp_path / "examples" / "os"
    folder.mkdir(parents=True)
    result = {"type": "vm_command_line", "command": "true"}
    for name in ("a", "b"):
        task = {
            "id": name,
            "instruction": "x",
            "evaluator": {
                "func": "exact_match",
                "result": result,
                "expected": {"type": "rule", "rules": {"expected": ""}},
            },
        }
        (folder / f"{name}.json").write_text(json.dumps(task))
    suite = (f"tasks.suite={tmp_path}", "tasks.set=all", "trainer.tasks_per_step=2")
    assert failures(*suite) == {}
    assert "of os/a, which does not exist" in failures(*suite, "imitation.enabled=true")["demonstrations"]


def test_a_data_set_takes_the_place_of_the_tasks_demonstrations(tmp_path):
    imitation = ("imitation.enabled=true", "rollout.max_steps=1", f"imitation.dataset={tmp_path}")
    assert f"{tmp_path} is no exported data set" in failures(*imitation)["demonstrations"]
    manifest = {"tokenizer": "x", "trajectories": [], "screenshots": []}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert "at least 1 item" in failures(*imitation)["demonstrations"]
    manifest["trajectories"] = [
        {
            "sha256": "x", "episode_id": "e", "task_id": "t", "domain": "d", "score": 1.0, "policy_version": 0, "step": 0,
            "stored_at": 0.0, "turns": 9, "tokens": 9, "images": [], "sampler": "script", "origin": "rollout",
        }
    ]  # fmt: skip
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert "demonstrations" not in failures(*imitation)


def test_demonstrations_must_fit_into_an_episode():
    imitation = ("imitation.enabled=true", "rollout.max_steps=1")
    assert "turns, more than rollout.max_steps=1" in failures(*imitation)["demonstrations"]
    small = failures("imitation.enabled=true", "env.screen=[640, 480]")["demonstrations"]
    assert "is made for another screen" in small


@pytest.mark.parametrize(
    ("overrides", "name", "words"),
    [
        (["model.path=./no-such-model"], "model", "does not exist"),
        (["model.path=no-such-model"], "model", "does not exist"),
        (["model.path=src/arpo"], "model", "has no config.json"),
        (["hardware.gpus=99"], "gpus", "hardware.gpus=99, but this machine has"),
        (["env.url=http://h:1", "env.token_file=no-such-file"], "desktops", "no-such-file cannot be read"),
        (["env.url=http://h:1"], "desktops", "env.token_file"),
    ],
)
def test_what_this_machine_lacks_is_found(overrides, name, words):
    assert words in failures("env.provider=simulated", *overrides, hardware=True)[name]


def test_the_hub_name_of_a_model_is_taken_on_trust():
    assert "model" not in failures("env.provider=simulated", "model.path=owner/model", hardware=True)


def test_an_empty_token_file_is_refused_and_one_with_a_token_is_not(tmp_path):
    token = tmp_path / "token"
    remote = ("env.url=http://h:1", f"env.token_file={token}")
    token.write_text("# nothing\n")
    assert "no token with scope trainer" in failures(*remote, hardware=True)["desktops"]
    token.write_text("secret\n")
    assert failures(*remote, hardware=True) == {}


def test_missing_programs_are_named_with_their_packages(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    detail = failures(hardware=True)["desktops"]
    assert "Xvfb" in detail
    assert "apt-get install" in detail


def test_without_hardware_nothing_heavy_is_imported():
    program = (
        "import sys\n"
        "from arpo.config.load import load_config\n"
        "from arpo.trainer.doctor import preflight\n"
        "preflight(load_config(None, ['hardware.gpus=1']), hardware=False)\n"
        "sys.exit(bool({'torch', 'transformers', 'fastapi', 'arpo.providers'} & sys.modules.keys()))\n"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_the_first_failure_is_raised_on_one_line_with_the_number_of_others():
    checks = [Check("a", True), Check("b", False, "b is wrong; fix: it"), Check("c", False, "c")]
    with pytest.raises(ConfigError, match=r"^b is wrong; fix: it \(and 1 more; `arpo doctor` lists all\)$"):
        raise_if_failed(checks)
    raise_if_failed(checks[:1])


def test_a_demonstration_that_the_grammar_has_no_words_for_is_named():
    simulated = ("env.provider=simulated", "tasks.suite=simulated", "tasks.set=all", "imitation.enabled=true")
    detail = failures(*simulated, "rollout.max_steps=8")["demonstrations"]
    assert detail.startswith("the demonstration of ")
    assert "no words for" in detail
    assert "fix: a tasks.set without it" in detail
    assert failures(*simulated, "imitation.enabled=false") == {}


def test_an_env_server_of_ones_own_needs_its_packages(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "uvicorn" else found(name))
    said = failures("env.provider=simulated", "tasks.suite=simulated", hardware=True)["desktops"]
    assert said.startswith("uvicorn not installed")
    assert "fix: pip install 'arpo[env-server]', or env.url" in said


def test_the_ray_launcher_needs_ray_and_no_torchrun(monkeypatch):
    on_ray = ("env.url=http://127.0.0.1:1", "launcher.kind=ray")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    assert "without torchrun" in failures(*on_ray, hardware=True)["launcher"]
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    assert "launcher" not in failures(*on_ray, hardware=True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "ray" else object())
    assert "fix: pip install 'arpo[ray]'" in failures(*on_ray, hardware=True)["launcher"]
