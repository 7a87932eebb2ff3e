from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arpo.config.load import dump_config, load_config, parse_arguments
from arpo.config.model import Config
from arpo.config.predecessor import SUCCESSORS
from arpo.config.settings import settings
from arpo.protocol.problems import ConfigError


def written(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(*overrides: str, path: Path | None = None) -> list[str]:
    with pytest.raises(ConfigError) as error:
        load_config(path, overrides)
    return str(error.value).splitlines()


def test_without_a_file_and_overrides_everything_has_its_default():
    assert load_config(None) == Config()


def test_off_is_a_word_in_files_too(tmp_path):
    assert load_config(written(tmp_path, "replay:\n  rule: off\n")).replay.rule == "off"


def test_overrides_win_over_the_file(tmp_path):
    path = written(tmp_path, "trainer:\n  max_steps: 7\n  tasks_per_step: 3\nlearner:\n")
    config = load_config(path, ["trainer.max_steps=9", "trainer.max_steps=11"])
    assert config.trainer.max_steps == 11
    assert config.trainer.tasks_per_step == 3
    assert config.learner == Config().learner


@pytest.mark.parametrize(
    ("override", "section", "name", "value"),
    [
        ("learner.lr=1e-4", "learner", "lr", 1e-4),
        ("learner.dual_clip=null", "learner", "dual_clip", None),
        ("env.screen=[800, 600]", "env", "screen", (800, 600)),
        ("run.resume=false", "run", "resume", False),
        ("replay.rule=off", "replay", "rule", "off"),
        ("imitation.enabled=on", "imitation", "enabled", True),
        ("run.name=2026-01-01", "run", "name", "2026-01-01"),
        ("run.name=007", "run", "name", "007"),
        ("env.url=http://host:1/?a=b", "env", "url", "http://host:1/?a=b"),
        ("env.url=null", "env", "url", None),
        ("model.path=1.5", "model", "path", "1.5"),
        ("run.dir=~/runs", "run", "dir", Path("~/runs").expanduser()),
    ],
)
def test_override_values_are_read_as_their_setting_means_them(override, section, name, value):
    assert getattr(getattr(load_config(None, [override]), section), name) == value


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("rollout.group_sise=4", "rollout.group_size"),
        ("learner.learning_rate=1", "learner has lr, "),
        ("trainer.lr=1", "learner.lr"),
        ("lr=1", "learner.lr"),
        ("hardwaer.gpus=1", "hardware.gpus"),
        ("trainer.max_steps.x=1", "trainer.max_steps"),
        ("xyzzy=1", "the sections are run, env"),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest_known_one(override, words):
    (line,) = refusal(override)
    assert line.startswith(f"unknown key {override.partition('=')[0]};")
    assert words in line
    assert line.endswith("(command line)")


@pytest.mark.parametrize(
    ("override", "expectation"),
    [
        ("trainer.max_steps=many", "a whole number above 0, not 'many'"),
        ("trainer.max_steps=0", "a whole number above 0, not 0"),
        ("trainer.max_steps=1.5", "a whole number above 0, not 1.5"),
        ("trainer.max_steps=true", "a whole number above 0, not True"),
        ("trainer.max_steps=", "a whole number above 0, not None"),
        ("trainer.max_steps={a: 1}", "a whole number above 0, not {'a': 1}"),
        ("learner.lr=.inf", "a number above 0, not inf"),
        ("learner.lr=.nan", "a number above 0, not nan"),
        ("learner.dual_clip=0.5", "a number above 1 or null, not 0.5"),
        ("engine.top_p=2", "a number above 0 and at most 1, not 2"),
        ("run.resume=maybe", "true or false, not 'maybe'"),
        ("agent.profile=gpt", "`uitars-1.5` or `uitars-1`, not 'gpt'"),
        ("env.screen=[800]", "not [800]"),
        ("env.screen=[800, tall]", "not [800, 'tall']"),
        ("run.name=a/b", "text that matches"),
        ("trainer=5", "a section with keys below it, not 5"),
    ],
)
def test_a_wrong_value_is_answered_with_what_is_expected(override, expectation):
    (line,) = refusal(override)
    assert line.startswith(f"{override.partition('=')[0]}: expected ")
    assert expectation in line
    assert line.endswith("(command line)")


def test_all_problems_are_reported_each_on_a_line_and_with_its_place(tmp_path):
    path = written(tmp_path, "run:\n  nam: x\nenv:\n  desktops: few\nextra: {a: 1, b: 2}\n")
    lines = refusal("learner.lr=fast", "rollout.n=8", path=path)
    assert sorted(line.split()[0] for line in lines) == ["env.desktops:", "learner.lr:", *["unknown"] * 3]
    assert sum(line.endswith(f"({path})") for line in lines) == 3


def test_keys_of_the_predecessor_name_their_successor(tmp_path):
    path = written(
        tmp_path,
        "worker:\n  rollout:\n    n: 8\n    tensor_parallel_size: 2\n  actor: {optim: {lr: 1.0e-6}, x: 1}\n"
        "algorithm:\n  adv_estimator: grpo\nenv:\n  num_envs: 16\ntrainer:\n  total_episodes: 15\n",
    )
    text = "\n".join(refusal(path=path))
    assert "worker.rollout.n is called rollout.group_size here" in text
    assert "worker.rollout.tensor_parallel_size does not exist here" in text
    assert "worker.actor.optim.lr is called learner.lr here" in text
    assert "worker.actor.x does not exist here" in text
    assert "algorithm.adv_estimator is called learner.advantage here" in text
    assert "env.num_envs is called env.desktops here" in text
    assert "trainer.total_episodes is called trainer.max_steps here" in text
    assert refusal("data.rollout_batch_size=32")[0].startswith(
        "data.rollout_batch_size is called trainer.tasks_per_step here"
    )


def test_every_successor_exists_and_no_predecessor_key_shadows_a_setting():
    assert {new.key for new in SUCCESSORS.values()} - {None} <= settings().keys()
    assert not SUCCESSORS.keys() & settings().keys()


def test_a_missing_file_is_answered_with_those_that_exist(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "b.yaml").touch()
    (tmp_path / "configs" / "a.yaml").touch()
    for missing in ("configs/c.yaml", "elsewhere/c.yaml"):
        (line,) = refusal(path=Path(missing))
        assert line == f"there is no file {missing}; there are: configs/a.yaml, configs/b.yaml"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("run: [1", "line 1"),
        ("run:\n  name: a\n  name: b\n", "line 3: name is given twice"),
        ("- a\n- b\n", "expected sections"),
        ("run: !!python/object:os.system {}\n", "line 1"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused_with_its_line(tmp_path, text, reason):
    path = written(tmp_path, text)
    (line,) = refusal(path=path)
    assert line.startswith(str(path))
    assert reason in line


def test_files_that_cannot_be_read_are_refused(tmp_path):
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path, tmp_path / "binary.yaml"):
        (line,) = refusal(path=path)
        assert "cannot be read" in line


def test_an_override_that_is_no_yaml_is_refused():
    (line,) = refusal("env.screen=[1")
    assert line.startswith("env.screen=[1 (command line) is no YAML")


def test_arguments_are_one_file_and_overrides():
    tokens = ["a.b=1", "config=configs/x.yaml", "c=d=e"]
    assert parse_arguments(tokens) == (Path("configs/x.yaml"), ["a.b=1", "c=d=e"])
    assert parse_arguments([]) == (None, [])


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (["nonsense"], r"^'nonsense' is neither config=FILE nor key=value$"),
        (["=5"], "neither config=FILE"),
        (["configs/x.yaml"], "fix: config=configs/x.yaml"),
        (["config="], "names no file"),
        (["config=a", "config=b"], "two configuration files: a and b"),
    ],
)
def test_other_arguments_are_refused(tokens, message):
    with pytest.raises(ConfigError, match=message):
        parse_arguments(tokens)


def test_a_dumped_configuration_loads_as_the_same_one(tmp_path):
    config = load_config(
        None, ["learner.lr=3e-7", "run.name=1e3", "env.url=http://h:1", "learner.dual_clip=null"]
    )
    assert load_config(written(tmp_path, dump_config(config))) == config


@given(st.text(max_size=30), st.text(max_size=30))
def test_any_override_is_read_or_refused(key, value):
    try:
        load_config(None, [f"{key}={value}"])
    except ConfigError:
        return


@given(
    st.sampled_from(sorted(settings())),
    st.text(max_size=20) | st.sampled_from(["[]", "{}", "1", "-1", "~", "&a *a"]),
)
def test_any_value_of_a_setting_is_read_or_refused_by_name(key, value):
    message = key
    try:
        load_config(None, [f"{key}={value}"])
    except ConfigError as error:
        message = str(error)
    assert message.startswith(key)
