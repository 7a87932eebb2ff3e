"""`arpo evaluate` of a model server through its real doors: simulated desktops, a server on a socket, kills and resumes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from runs import ROOT, alive, children, lines, wait_for

from arpo.agent.profiles import get_profile
from arpo.trajectory import Trajectory
from model_server import (
    KEY,
    ModelServer,
    demonstrations,
    episode_seed,
    model_server,
    pictures,
    refusal,
    turn_of,
)

Arpo = Callable[..., subprocess.CompletedProcess[str]]
PROFILE = get_profile("uitars-1.5", min_pixels=3_136, max_pixels=100_352, prompt="short")
TASKS = {
    "calculator": ["calculator-product", "calculator-sum"],
    "files": ["files-delete"],
    "notes": ["notes-milk"],
}
# runs a command as `arpo` does, then says which heavy packages it has loaded
WATCHED = """
import sys
from arpo.cli import app
code = app(sys.argv[1:], standalone_mode=False)
print("loaded:", [name for name in ("torch", "transformers", "numpy", "ray") if name in sys.modules], file=sys.stderr)
"""


@pytest.fixture(scope="module")
def server() -> Iterator[ModelServer]:
    script = ModelServer(
        demonstrations("simulated", {name for names in TASKS.values() for name in names}, PROFILE), key=KEY
    )
    with model_server(script):
        yield script


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs")
    (path / "four.json").write_text(json.dumps(TASKS))
    (path / "one.json").write_text(json.dumps({"files": ["files-delete"]}))
    (path / "key").write_text(f"{KEY}\n")
    return path


def arguments(folder: Path, server: ModelServer, name: str, *more: str) -> tuple[str, ...]:
    return (
        "evaluate", "config=configs/smoke_cpu.yaml", "env.provider=simulated", "env.screen=[640, 480]",
        "tasks.suite=simulated", f"tasks.set={folder}/four.json", f"run.dir={folder}", f"run.name={name}",
        "engine.kind=openai", f"engine.openai.url={server.url}", "engine.openai.model=demo",
        f"engine.openai.api_key_file={folder}/key", "--label", "mine", *more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(folder: Path, server: ModelServer) -> tuple[Path, str]:
    """An evaluation that nothing interrupts; its run directory and what the command said."""
    server.troubles[:] = [refusal(500, "oops"), refusal(429, "slow down", headers={"Retry-After": "0.5"})]
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, *arguments(folder, server, "whole")],
        cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder / "whole", done.stdout + done.stderr


def result(run: Path, label: str = "mine") -> dict:
    return json.loads((run / "evaluations" / f"{label}.json").read_text())


def episodes(run: Path) -> list[Trajectory]:
    log = run / "evaluations" / "mine" / "episodes.jsonl"
    return [
        Trajectory.model_validate_json(line)
        for line in log.read_text().splitlines(keepends=True)
        if line[-1] == "\n"
    ]


def test_a_model_server_is_evaluated_without_torch(whole: tuple[Path, str], server: ModelServer) -> None:
    run, said = whole
    assert "loaded: []" in said
    assert "torch" not in said.replace("loaded", "")
    found = result(run)
    assert (found["episodes"], found["lost"], found["faults"]) == (8, 0, {})
    assert 0 < found["success"] < 1, "a comparison would show nothing"
    assert found["interval"][0] < found["success"] < found["interval"][1]
    assert set(found["pass_at"]) == {"1", "2"}
    assert found["pass_at"]["1"]["value"] == pytest.approx(found["success"])
    assert set(found["domains"]) == set(TASKS)
    assert "pass@2" in said
    assert {size for body in server.bodies for size in pictures(body)} == {PROFILE.grid((640, 480)).extent}
    assert max(len(pictures(body)) for body in server.bodies) <= 4


def test_every_episode_is_a_folder_that_osworlds_tools_read(whole: tuple[Path, str]) -> None:
    run, _ = whole
    scores: dict[str, list[float]] = {}
    # as OSWorld's show_result.py walks a results folder
    for domain in sorted(path for path in (run / "evaluations" / "mine").iterdir() if path.is_dir()):
        for task in domain.iterdir():
            for repeat in sorted(task.iterdir()):
                scores.setdefault(task.name, []).append(float((repeat / "result.txt").read_text()))
                steps = [json.loads(line) for line in (repeat / "traj.jsonl").read_text().splitlines()]
                assert steps[-1]["done"]
                assert all((repeat / step["screenshot_file"]).stat().st_nlink > 1 for step in steps)
    assert scores == {task["task_id"]: task["scores"] for task in result(run)["tasks"]}


def test_the_key_is_nowhere_but_in_its_header(
    whole: tuple[Path, str], folder: Path, server: ModelServer
) -> None:
    run, said = whole
    assert KEY not in said
    for path in run.rglob("*"):
        assert path.is_dir() or KEY.encode() not in path.read_bytes(), path
    assert {headers["authorization"] for headers in server.headers} == {f"Bearer {KEY}"}


def test_what_is_complete_is_printed_again_and_nothing_is_run(
    arpo: Arpo, whole: tuple[Path, str], folder: Path, server: ModelServer
) -> None:
    asked = len(server.bodies)
    again = arpo(*arguments(folder, server, "whole", "--json"))
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout) == result(whole[0])
    assert "is complete" in again.stderr
    assert "env-server" not in again.stderr
    assert len(server.bodies) == asked


def test_other_settings_under_the_same_label_are_refused(
    arpo: Arpo, whole: tuple[Path, str], folder: Path, server: ModelServer
) -> None:
    before = result(whole[0])
    other = arpo(*arguments(folder, server, "whole", "engine.eval_temperature=0"))
    assert other.returncode == 2
    assert "engine.eval_temperature: 1.0 → 0.0; fix: --label OTHER, or --fresh" in other.stderr
    assert len(other.stderr.strip().splitlines()) == 1
    assert result(whole[0]) == before


@pytest.mark.slow
def test_a_killed_evaluation_goes_on_and_ends_as_one_that_was_not(
    arpo: Arpo, whole: tuple[Path, str], folder: Path, server: ModelServer
) -> None:
    run, command = folder / "killed", arguments(folder, server, "killed")
    server.delay_s = 0.4
    process = subprocess.Popen(
        [sys.executable, "-m", "arpo.cli", *command],
        cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_for(lambda: len(lines(run / "evaluations" / "mine" / "episodes.jsonl")) >= 3)
        family = children(process.pid)
    finally:
        process.kill()
        process.wait()
        server.delay_s = 0.0
    wait_for(lambda: not alive(family), 30)
    assert process.returncode == -signal.SIGKILL
    recorded = {t.episode_id for t in episodes(run)}
    assert 3 <= len(recorded) < 8
    assert not (run / "evaluations" / "mine.json").exists()

    asked = len(server.bodies)
    done = arpo(*command)
    assert done.returncode == 0, done.stderr
    assert f"going on: {len(recorded)} of 8 episodes are recorded" in done.stderr
    assert Counter(t.episode_id for t in episodes(run)) == Counter(
        {t.episode_id: 1 for t in episodes(whole[0])}
    )
    began = [episode_seed(body) for body in server.bodies[asked:] if turn_of(body) == 0]
    assert len(began) == 8 - len(recorded), "a valid episode was run again"
    assert result(run) == result(whole[0])


@pytest.mark.slow
def test_sigterm_asks_to_be_run_again_and_faults_stand_apart(
    arpo: Arpo, folder: Path, server: ModelServer
) -> None:
    hang = arguments(folder, server, "stopped", f"tasks.set={folder}/one.json")
    server.troubles[:] = [None]
    process = subprocess.Popen(
        [sys.executable, "-m", "arpo.cli", *hang],
        cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    wait_for(lambda: not server.troubles)
    process.terminate()
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 75, said
    assert said.strip().splitlines()[-1] == "terminated: the same command goes on"

    # a server that fails for longer than anyone waits: lost, not 0
    server.troubles[:] = [refusal(503, f"overloaded, {KEY}")] * 2
    lost = arpo(*hang, "engine.openai.outage_s=0", "rollout.max_retries=0", "trainer.eval_repeats=2")
    assert lost.returncode == 1, lost.stderr
    assert "2 episodes were lost to environment faults" in lost.stderr
    assert "internal 2" in lost.stdout
    assert result(folder / "stopped")["success"] is None
    faults = (folder / "stopped" / "faults.jsonl").read_text()
    assert "status 503: overloaded, ***" in faults
    assert KEY not in faults

    whole = arpo(*hang, "--json")
    assert whole.returncode == 0, whole.stderr
    found = json.loads(whole.stdout)
    assert (found["episodes"], found["lost"], found["faults"]) == (2, 0, {"internal": 2})


@pytest.mark.slow
def test_a_wrong_key_ends_the_evaluation_at_once_and_is_not_shown(
    arpo: Arpo, folder: Path, server: ModelServer
) -> None:
    wrong = "sk-a-wrong-key"
    (folder / "wrong").write_text(wrong)
    refused = arpo(*arguments(folder, server, "refused", f"engine.openai.api_key_file={folder}/wrong"))
    assert refused.returncode == 1
    last = refused.stderr.strip().splitlines()[-1]
    assert "refuses every request: status 401: Incorrect API key provided: Bearer ***; fix: " in last
    assert wrong not in refused.stdout + refused.stderr
    assert "Traceback" not in refused.stderr


def test_clean_and_noisy_are_compared_task_by_task(arpo: Arpo, whole: tuple[Path, str]) -> None:
    run, _ = whole
    noisy = result(run) | {"policy": "noisy"}
    for task in noisy["tasks"][1:]:
        task["scores"] = [0.0, 0.0]
    noisy["tasks"] = [
        *noisy["tasks"][1:],
        {"task_id": "extra", "domain": "notes", "scores": [1.0], "lost": 1},
    ]
    (run / "evaluations" / "noisy.json").write_text(json.dumps(noisy))
    shown = arpo("compare", str(run), "mine", "noisy")
    assert shown.returncode == 0, shown.stderr
    assert "only in noisy, not compared: notes/extra" in shown.stdout
    assert "difference" in shown.stdout
    found = json.loads(arpo("compare", str(run), "mine", "noisy", "--json").stdout)
    assert (found["first"], found["second"], len(found["tasks"])) == ("mine", "noisy", 3)
    assert found["only_first"] == ["calculator/calculator-product"]
    assert found["all"]["difference"]["value"] == pytest.approx(-found["all"]["first"])
    missing = arpo("compare", str(run), "mine", "other")
    assert missing.returncode == 2
    assert "fix: the label of a finished evaluation" in missing.stderr
    assert "(mine, noisy)" in missing.stderr


@pytest.mark.parametrize("command", ["train", "imitate"])
def test_training_with_a_model_server_is_refused(
    arpo: Arpo, folder: Path, server: ModelServer, command
) -> None:
    words = arguments(folder, server, "trained")[1:-2]
    refused = arpo(command, *words)
    assert refused.returncode == 2
    assert "fix: engine.kind=hf to train, or `arpo evaluate`" in refused.stderr
    assert not (folder / "trained").exists()


def test_the_environments_key_is_used_without_a_file(arpo: Arpo, folder: Path, server: ModelServer) -> None:
    settings = [
        "engine.openai.api_key_file=null" if "api_key_file" in one else one
        for one in arguments(folder, server, "doctor")[1:-2]
    ]
    assert "with an API key" in arpo("doctor", *settings, OPENAI_API_KEY=KEY).stdout
    assert "without an API key" in arpo("doctor", *settings, OPENAI_API_KEY="").stdout
