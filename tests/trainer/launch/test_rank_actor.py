from pathlib import Path

import pytest

from arpo.protocol.problems import ConfigError

pytest.importorskip("ray", reason="ray is not installed; fix: pip install 'arpo[ray]'")

from arpo.trainer.launch.rank_actor import RankActor


def test_a_run_directory_that_a_rank_does_not_see_is_an_error_with_the_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    actor = RankActor("/no/such/folder")
    marker, reply = tmp_path / "marker", tmp_path / "reply"
    marker.write_text("secret")
    actor.find(marker, reply)
    assert reply.read_text() == "secret"
    with pytest.raises(
        ConfigError, match=r"elsewhere is not there .* fix: run.dir on storage that all nodes have"
    ):
        actor.find(tmp_path / "elsewhere" / "marker", reply)


def test_relative_paths_begin_where_the_drivers_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "marker").write_text("secret")
    actor = RankActor(str(tmp_path / "work"))
    actor.find(Path("marker"), Path("reply"))
    assert (tmp_path / "work" / "reply").exists()
