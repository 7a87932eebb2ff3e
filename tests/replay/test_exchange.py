"""A data set is whole and checked, and importing it twice is importing it once."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from replay_kit import TOKENIZER, Run, close, picture, sha, trajectory

from arpo.protocol.problems import ArpoError, ConfigError
from arpo.replay.dataset import Dataset
from arpo.replay.exchange import export_run, import_run
from arpo.replay.listing import StoredRun
from arpo.trajectory.store import TrajectoryLog


@pytest.fixture
def dataset(source, tmp_path) -> Path:
    export_run(StoredRun(source.root), tmp_path / "data")
    return tmp_path / "data"


def test_an_export_holds_everything_and_stands_alone(source, dataset) -> None:
    names = [line["episode_id"] for line in map(json.loads, (dataset / "trajectories.jsonl").open())]
    assert names == ["one", "two", "fresh-0"]
    manifest = json.loads((dataset / "manifest.json").read_text())
    assert (manifest["format"], manifest["tokenizer"]) == (1, TOKENIZER)
    assert set(manifest["screenshots"]) == {sha("p"), sha("a"), sha("last")}
    (source.root / "screenshots").rename(source.root / "gone")
    items = list(Dataset(dataset).items(0.1))
    assert [item.trajectory for item in items] == [
        source.folder.rows.get(one.stored.sha256) for one in StoredRun(source.root).listed()
    ]
    assert Dataset(dataset).picture(sha("a")) == picture("a")
    assert sorted(path.name for path in dataset.parent.iterdir()) == ["data", "source"]


def test_an_export_of_one_task_and_of_none(source, tmp_path) -> None:
    assert len(export_run(StoredRun(source.root), tmp_path / "one", task="other").trajectories) == 1
    with pytest.raises(ConfigError, match="nothing to export; fix"):
        export_run(StoredRun(source.root), tmp_path / "none", task="unheard of")
    assert not (tmp_path / "none").exists()
    assert not list(tmp_path.glob(".none*"))


def test_an_export_replaces_nothing(source, dataset, tmp_path) -> None:
    before = (dataset / "manifest.json").read_bytes()
    with pytest.raises(ConfigError, match="not empty; fix: name another folder"):
        export_run(StoredRun(source.root), dataset)
    assert (dataset / "manifest.json").read_bytes() == before
    (tmp_path / "empty").mkdir()
    assert export_run(StoredRun(source.root), tmp_path / "empty").trajectories


def test_a_lost_or_damaged_screenshot_is_no_export(source, tmp_path) -> None:
    source.screenshots.path(sha("a")).write_bytes(b"something else")
    with pytest.raises(ConfigError, match=f"{sha('a')}.png: its content has another sha256"):
        export_run(StoredRun(source.root), tmp_path / "data")
    source.screenshots.path(sha("a")).unlink()
    with pytest.raises(ConfigError, match=f"{sha('a')}.png: No such file"):
        export_run(StoredRun(source.root), tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_recorded_demonstrations_are_exported_and_only_they(source, tmp_path) -> None:
    log = TrajectoryLog(source.root / "trajectories")
    for score in (1.0, 0.0, None):
        log.append(0, trajectory(score, "shown", sampler="script"))
    log.append(1, trajectory(1.0, "sampled"))
    manifest = export_run(StoredRun(source.root), tmp_path / "data", demonstrations=True)
    assert [(entry.episode_id, entry.sampler) for entry in manifest.trajectories] == [("shown", "script")]
    assert next(Dataset(tmp_path / "data").items(0.1)).trajectory.sampler == "script"
    with (log.root / "step-000000.jsonl").open("a") as file:
        file.write('{"episode')
    with pytest.raises(ArpoError, match=r"step-000000\.jsonl:4 is no trajectory .*; fix: remove that line"):
        export_run(StoredRun(source.root), tmp_path / "again", demonstrations=True)


def test_an_import_into_a_new_run_waits_in_its_inbox_and_twice_is_once(source, dataset, tmp_path) -> None:
    target = Run(tmp_path / "runs" / "new")
    assert import_run(target.root, Dataset(dataset)).added == 3
    again = import_run(target.root, Dataset(dataset))
    assert (again.added, again.present) == (0, 3)
    listed = StoredRun(target.root).listed()
    assert {(one.stored.episode_id, one.where) for one in listed} == {
        ("one", "inbox"), ("two", "inbox"), ("fresh-0", "inbox"),
    }  # fmt: skip
    assert target.rows() == source.rows()
    assert target.screenshots.get(sha("last")) == picture("last")
    # the inbox alone keeps its rows
    assert target.folder.collect_garbage(set(), target.checkpoints) == 0


def test_rows_stay_while_somebody_holds_the_folder(source) -> None:
    buffer = source.buffer("nobody needs it")
    with source.folder.lock(shared=True):
        assert source.folder.collect_garbage(set(), source.checkpoints) == 0
    assert buffer.stored[0].sha256 in source.rows()
    assert source.folder.collect_garbage(set(), source.checkpoints) == 1
    assert len(source.rows()) == 3


def test_no_row_is_removed_while_an_index_cannot_be_read(source) -> None:
    source.buffer("nobody needs it")
    (source.checkpoints / "step-000003" / "replay" / "index.json").write_text("{")
    with pytest.raises(ArpoError, match=r"index\.json cannot be read, so no replay row is removed"):
        source.folder.collect_garbage(set(), source.checkpoints)
    assert len(source.rows()) == 4


def test_what_was_saved_last_stays_though_its_checkpoint_is_not_there_yet(source) -> None:
    buffer = source.buffer("a", capacity=1)
    buffer.save(source.root)  # on its way into a checkpoint that is published in the background
    evicted = buffer.stored[0].sha256
    close(buffer, [1.0])
    source.folder.collect_garbage(buffer.needed_rows(), source.checkpoints)
    assert evicted in source.rows()
    buffer.save(source.root)
    source.folder.collect_garbage(buffer.needed_rows(), source.checkpoints)
    assert evicted not in source.rows()


def test_a_row_that_only_an_older_checkpoint_refers_to_stays_as_long_as_that_one(source) -> None:
    buffer = source.buffer(capacity=1)
    close(buffer, [1.0], task="third")
    older = source.publish(buffer, 4)
    needed = buffer.stored[0].sha256
    close(buffer, [1.0], task="third", started_at=200.0)
    source.publish(buffer, 5)
    assert source.folder.collect_garbage(buffer.needed_rows(), source.checkpoints) == 0
    assert needed in source.rows()
    # a checkpoint on its way to its name counts as well
    older = older.rename(older.with_name(".step-000004.x"))
    assert source.folder.collect_garbage(buffer.needed_rows(), source.checkpoints) == 0
    shutil.rmtree(older)
    assert source.folder.collect_garbage(buffer.needed_rows(), source.checkpoints) == 1
    assert needed not in source.rows()


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


DAMAGES = {
    "another word": (lambda d: edit(d / "trajectories.jsonl", "press", "Press"), r"jsonl:1: its sha256 is not"),
    "fewer lines": (
        lambda d: (d / "trajectories.jsonl").write_text((d / "trajectories.jsonl").read_text().split("\n")[0] + "\n"),
        r"jsonl:2: the manifest has more trajectories",
    ),
    "more lines": (
        lambda d: (d / "trajectories.jsonl").write_text((d / "trajectories.jsonl").read_text() + "{}\n"),
        r"jsonl:4: the manifest has fewer trajectories",
    ),
    "no lines": (lambda d: (d / "trajectories.jsonl").unlink(), r"trajectories\.jsonl: No such file"),
    "another score": (
        lambda d: edit(d / "manifest.json", '"score": 1.0', '"score": 0.9'),
        r"jsonl:1: the manifest describes another trajectory",
    ),
    "no manifest": (lambda d: (d / "manifest.json").unlink(), "is no exported data set"),
    "a later format": (lambda d: edit(d / "manifest.json", '"format": 1', '"format": 2'), r"manifest\.json: input"),
    "a picture missing": (lambda d: next(d.glob("screenshots/*/*")).unlink(), "No such file"),
    "a picture changed": (lambda d: next(d.glob("screenshots/*/*")).write_bytes(b"x"), "another sha256"),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES)
def test_of_a_damaged_data_set_nothing_is_imported(dataset, tmp_path, damage, message) -> None:
    damage(dataset)
    with pytest.raises(ConfigError, match=rf"{message}.*; fix: ") as error:
        import_run(tmp_path / "new", Dataset(dataset))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss_mask": [False, True, True, True, True]}, "its loss_mask is not that of its turns"),
        ({"loss_mask": [False, True]}, "token_ids, loss_mask and logprobs differ in length"),
        ({"token_ids": [1], "loss_mask": [False], "logprobs": [0.0]}, "is not within its 1 tokens"),
        ({"score": 0.05}, r"score 0\.05 is no success with replay\.success_above=0\.1"),
    ],
)
def test_a_trajectory_that_cannot_be_is_not_imported_whatever_its_hash(
    source, tmp_path, changes, message
) -> None:
    """A data set of another hand: hashes are right, the content is not."""
    log = TrajectoryLog(source.root / "trajectories")
    log.append(0, trajectory(1.0, "shown"))
    export_run(StoredRun(source.root), tmp_path / "data", demonstrations=True)
    path = tmp_path / "data" / "trajectories.jsonl"
    document = json.dumps({**json.loads(path.read_text()), **changes}).encode()
    manifest = json.loads((tmp_path / "data" / "manifest.json").read_text())
    (entry,) = manifest["trajectories"]
    entry["sha256"] = hashlib.sha256(document).hexdigest()
    entry["score"] = changes.get("score", 1.0)
    path.write_bytes(document + b"\n")
    (tmp_path / "data" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ConfigError, match=message):
        import_run(tmp_path / "new", Dataset(tmp_path / "data"))


def test_success_is_measured_by_the_run_that_imports(dataset, tmp_path) -> None:
    (tmp_path / "strict").mkdir()
    (tmp_path / "strict" / "config.yaml").write_text("replay:\n  success_above: 1.0\n")
    with pytest.raises(ConfigError, match=r"score 1\.0 is no success with replay\.success_above=1\.0"):
        import_run(tmp_path / "strict", Dataset(dataset))


def test_token_ids_of_another_tokenizer_are_refused_and_change_nothing(source, dataset, tmp_path) -> None:
    edit(dataset / "manifest.json", TOKENIZER, "e" * 64)
    with pytest.raises(
        ConfigError, match=r"token ids of another tokenizer than .*; fix: import it into a run"
    ):
        import_run(source.root, Dataset(dataset))
    import_run(tmp_path / "new", Dataset(dataset))
    edit(dataset / "manifest.json", "e" * 64, TOKENIZER)
    with pytest.raises(ConfigError, match="another tokenizer"):
        import_run(tmp_path / "new", Dataset(dataset))
    assert len(StoredRun(tmp_path / "new").listed()) == 3


def test_a_run_is_listed_from_its_newest_complete_checkpoint(source) -> None:
    later = source.publish(source.buffer("later"), 12)
    assert [one.stored.episode_id for one in StoredRun(source.root).listed()] == ["later"]
    (later / "manifest.json").write_text('{"files": {"replay/index.json": 1}}')
    assert [one.stored.episode_id for one in StoredRun(source.root).listed("task")] == ["one", "two"]
    index = source.checkpoints / "step-000003" / "replay" / "index.json"
    index.write_text("x" * index.stat().st_size)
    with pytest.raises(ArpoError, match=r"the replay index of .*step-000003 is damaged"):
        StoredRun(source.root).listed()


def test_ones_own_export_adds_nothing(source, dataset) -> None:
    import_run(source.root, Dataset(dataset))
    assert [one.where for one in StoredRun(source.root).listed()] == ["buffer"] * 3


def test_a_trajectory_is_found_by_the_beginning_of_its_hash_or_its_episode(source) -> None:
    run = StoredRun(source.root)
    one = run.find("two")
    assert run.find(one.stored.sha256[:16]) == one
    for name in ("", "nothing"):
        with pytest.raises(ConfigError, match=r"called .*; fix: take the id from `arpo replay list"):
            run.find(name)


def test_export_and_import_keep_every_bit(source, dataset, tmp_path) -> None:
    import_run(tmp_path / "new", Dataset(dataset))
    for sha256 in source.rows():
        assert Run(tmp_path / "new").folder.rows.document(sha256) == source.folder.rows.document(sha256)
