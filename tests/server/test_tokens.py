from __future__ import annotations

import logging
import stat

import pytest

from arpo.protocol.problems import ConfigError
from arpo.protocol.tokens import Scope, Token, default_token_file, parse_tokens, token_for
from arpo.server.callers import Caller
from arpo.server.tokens import TokenFile, ensure_token_file


def test_a_missing_token_file_is_made_for_its_owner_only_and_an_existing_one_is_kept(tmp_path) -> None:
    path = tmp_path / "new" / "token"
    assert ensure_token_file(path) is True
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    trainer, admin = made = parse_tokens(path.read_text())
    assert min(len(trainer.secret), len(admin.secret)) >= 40
    assert trainer.secret != admin.secret
    assert ensure_token_file(path) is False
    assert parse_tokens(path.read_text()) == made
    assert [entry.name for entry in path.parent.iterdir()] == ["token"]
    tokens = TokenFile(path)
    assert tokens.caller(trainer.secret.encode()) == Caller("trainer", frozenset({Scope.TRAINER}))
    assert tokens.caller(admin.secret.encode()) == Caller("admin", frozenset({Scope.ADMIN}))


def test_every_line_is_valid_and_comments_are_not(tmp_path) -> None:
    path = tmp_path / "token"
    path.write_text("# old\nfirst\n\n  second  \n")
    tokens = TokenFile(path)
    assert tokens.caller(b"first")
    assert tokens.caller(b"second")
    for wrong in (b"", b"#", b"# old", b"firs", b"first ", b"first\nsecond"):
        assert not tokens.caller(wrong)


def test_a_changed_file_is_read_again_and_an_empty_one_revokes_all(tmp_path) -> None:
    path = tmp_path / "token"
    path.write_text("old\n")
    tokens = TokenFile(path)
    path.write_text("newer\nold\n")
    assert tokens.caller(b"newer")
    assert tokens.caller(b"old")
    fresh = tmp_path / "fresh"
    fresh.write_text("only\n")
    fresh.replace(path)
    assert tokens.caller(b"only")
    assert not tokens.caller(b"old")
    path.write_text("")
    assert not tokens.caller(b"only")


def test_a_file_that_is_gone_or_unreadable_for_a_moment_changes_nothing(tmp_path, caplog) -> None:
    path = tmp_path / "token"
    path.write_text("stays\n")
    tokens = TokenFile(path)
    path.unlink()
    with caplog.at_level(logging.WARNING):
        assert tokens.caller(b"stays")
    assert str(path) in caplog.text
    path.write_text("stays root\n")
    assert tokens.caller(b"stays")
    assert "stays\n" not in caplog.text


@pytest.mark.parametrize("text", ["", "# nothing\n", "t root\n", "t trainer a b\n", "tøken\n"])
def test_a_file_without_a_usable_token_is_refused_by_name(tmp_path, text: str) -> None:
    path = tmp_path / "token"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=str(path)):
        TokenFile(path)


def test_a_file_that_others_can_read_is_reported(tmp_path, caplog) -> None:
    path = tmp_path / "token"
    path.write_text("secret-word\n")
    path.chmod(0o644)
    with caplog.at_level(logging.WARNING):
        TokenFile(path)
    assert "644" in caplog.text
    assert "secret-word" not in caplog.text


def test_an_unwritable_place_is_one_line_with_the_fix(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="fix: --token-file"):
        ensure_token_file(tmp_path / "file" / "token")


def test_the_default_place_is_the_users_configuration(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert default_token_file() == tmp_path / "arpo" / "env-server.token"


def test_a_token_that_no_header_could_carry_is_refused() -> None:
    with pytest.raises(ValueError, match="line 2"):
        parse_tokens("good\nb\x07d\n")


def test_a_line_says_what_a_token_is_good_for_and_whose_it_is() -> None:
    text = "a\nb admin\n# no\nc trainer,backend  alice\n"
    assert parse_tokens(text) == [
        Token("a", frozenset({Scope.TRAINER})),
        Token("b", frozenset({Scope.ADMIN})),
        Token("c", frozenset({Scope.TRAINER, Scope.BACKEND}), "alice"),
    ]
    assert token_for(parse_tokens(text), Scope.BACKEND).secret == "c"
    assert token_for(parse_tokens("a\n"), Scope.ADMIN) is None


def test_no_message_and_no_repr_shows_a_token() -> None:
    with pytest.raises(ValueError, match="line 2: the token of an earlier line") as caught:
        parse_tokens("geheim trainer\ngeheim admin\n")
    assert "geheim" not in str(caught.value)
    assert "geheim" not in repr(parse_tokens("geheim"))


def test_tokens_of_one_name_are_one_caller_and_nameless_ones_are_callers_of_their_own(tmp_path) -> None:
    path = tmp_path / "token"
    path.write_text("old trainer alice\nnew trainer alice\nx\ny\n")
    tokens = TokenFile(path)
    assert tokens.caller(b"old") == tokens.caller(b"new")
    assert tokens.caller(b"x").name != tokens.caller(b"y").name
    assert tokens.caller(b"x").name != "x"
