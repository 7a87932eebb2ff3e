"""`arpo replay` through its real door."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from replay_kit import Run, sha

Arpo = Callable[..., subprocess.CompletedProcess[str]]


def replay(arpo: Arpo, *arguments: object) -> str:
    result = arpo("replay", *map(str, arguments))
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_list_and_show_tell_what_is_stored(arpo: Arpo, source: Run) -> None:
    rows = json.loads(replay(arpo, "list", source.root, "--json"))
    assert [(row["episode_id"], row["where"]) for row in rows] == [
        ("one", "buffer"), ("two", "buffer"), ("fresh-0", "buffer"),
    ]  # fmt: skip
    table = replay(arpo, "list", source.root, "--task", "other")
    assert rows[2]["sha256"][:8] in table
    assert rows[0]["sha256"][:8] not in table

    text = replay(arpo, "show", source.root, rows[2]["sha256"][:8])
    picture = str(source.screenshots.path(sha("a")))
    for expected in (
        "d/other: press [it]",
        "score 1",
        "policy version 4",
        picture,
        '"kind":"click"',
        "turn 2",
    ):
        assert expected in text
    shown = json.loads(replay(arpo, "show", source.root, "two", "--json"))
    assert shown["instruction"] == "press [it]"
    assert [turn["text"] for turn in shown["turns"]] == ["x", "y"]
    assert shown["turns"][0]["actions"][0]["kind"] == "click"
    assert Path(shown["turns"][0]["screenshot"]).is_file()


def test_export_and_import_carry_a_runs_successes_into_another(arpo: Arpo, source: Run, tmp_path) -> None:
    data, target = tmp_path / "data", tmp_path / "target"
    assert "3 trajectories, 3 screenshots" in replay(arpo, "export", source.root, data)
    assert "2 trajectories" in replay(arpo, "export", source.root, tmp_path / "some", "--task", "task")
    assert "3 trajectories imported\n" in replay(arpo, "import", target, data)
    assert "0 trajectories imported, 3 were there already" in replay(arpo, "import", target, data)
    rows = json.loads(replay(arpo, "list", target, "--json"))
    assert {row["where"] for row in rows} == {"inbox"}
    assert len(rows) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("list", "nowhere"), "nowhere is no run directory; fix: "),
        (("show", "source", "nothing"), "no stored trajectory is called nothing; fix: "),
        (("export", "source", "source"), "source is there already and not empty; fix: "),
        (("export", "source", "new", "--task", "nothing"), "there is nothing to export; fix: "),
        (("export", "source", "new", "--demonstrations"), "there is nothing to export; fix: "),
        (
            ("import", "new", "source"),
            "source is no exported data set (manifest.json: No such file or directory); fix: ",
        ),
    ],
)
def test_wrong_input_is_one_line_with_the_fix_and_exit_code_2(
    arpo: Arpo, source: Run, tmp_path, arguments: tuple[str, ...], message: str
) -> None:
    (tmp_path / "nowhere.file").touch()
    paths = [
        str(tmp_path / a) if a.partition(".")[0] in ("source", "nowhere", "new") else a for a in arguments
    ]
    result = arpo("replay", *paths)
    assert result.returncode == 2, result.stdout
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_a_damaged_row_fails_and_is_named(arpo: Arpo, source: Run, tmp_path) -> None:
    sha256 = sorted(source.rows())[0]
    source.folder.rows.path(sha256).write_bytes(b"")
    result = arpo("replay", "export", str(source.root), str(tmp_path / "data"))
    assert result.returncode == 1
    assert f"{sha256}.json.gz is damaged" in result.stderr
    assert not (tmp_path / "data").exists()


def test_a_run_that_cannot_be_written_is_one_line(arpo: Arpo, source: Run, tmp_path) -> None:
    replay(arpo, "export", source.root, tmp_path / "data")
    (tmp_path / "file").touch()
    result = arpo("replay", "import", str(tmp_path / "file" / "run"), str(tmp_path / "data"))
    assert result.returncode == 1
    assert "file/run cannot be written: Not a directory; fix: " in result.stderr


def test_looking_changes_nothing_and_loads_no_torch(source: Run) -> None:
    before = {path: path.stat().st_mtime_ns for path in source.root.rglob("*")}
    command = [sys.executable, "-X", "importtime", "-m", "arpo.cli", "replay", "list", str(source.root)]
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=dict(os.environ))
    imported = {line.rsplit("|", 1)[-1].strip() for line in result.stderr.splitlines()}
    assert "arpo.replay.listing" in imported
    assert not imported & {"torch", "transformers", "numpy", "arpo.learner", "arpo.policy"}
    assert {path: path.stat().st_mtime_ns for path in source.root.rglob("*")} == before
