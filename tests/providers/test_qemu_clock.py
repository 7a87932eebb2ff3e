"""The clock of a guest is set by its own user where that may do it, else by sudo; a wrong clock is an error."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from osworld_guest import Guest

from arpo.providers.base import ProviderError
from arpo.providers.qemu.clock import set_clock

# A clock in a file. Whether the user may set it is whether `allowed` is there.
DATE = """#!/bin/sh
cd "$HOME" || exit 1
case $1 in
    +*) /usr/bin/date -u -d "@$(cat clock)" "$1" ;;
    *) [ -e allowed ] || { echo "date: cannot set date: Operation not permitted" >&2; exit 1; }
       echo "$3" | tr -d @ >clock; echo "$0" >how ;;
esac
"""
SUDO = """#!/bin/sh
cd "$HOME" || exit 1
case $1 in
    -n) [ -e trusted ] || exit 1; shift ;;
    -S) read -r word; [ "$word" = 'it'"'"'s "me"' ] || exit 1; shift 3 ;;
esac
touch allowed; "$@"; rm allowed; echo sudo >how
"""


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    (tmp_path / ".lib").mkdir()
    for name, text in (("date", DATE), ("sudo", SUDO)):
        (tmp_path / ".lib" / name).write_text(text)
        (tmp_path / ".lib" / name).chmod(0o755)
    (tmp_path / "clock").write_text("1000000000")
    return tmp_path


@pytest.fixture
def correct(disk: Path) -> Iterator[Callable[[str], None]]:
    server = Guest(("127.0.0.1", 0), disk, (64, 48))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield lambda password: asyncio.run(set_clock(f"127.0.0.1:{server.server_address[1]}", password))
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("may", ["allowed", "trusted", "password"])
def test_a_clock_is_set_by_the_user_or_by_sudo(disk, correct, may) -> None:
    if may != "password":
        (disk / may).touch()
    correct('it\'s "me"')
    assert float((disk / "clock").read_text()) > 1.7e9
    assert (disk / "how").read_text().strip().endswith("date" if may == "allowed" else "sudo")


def test_a_clock_that_stays_wrong_is_an_error_with_the_fix_and_without_the_password(disk, correct) -> None:
    with pytest.raises(ProviderError) as caught:
        correct("wrong guess")
    assert "s off and its user may not set it; fix: --provider-option sudo_password=" in str(caught.value)
    assert "wrong guess" not in str(caught.value)
    assert (disk / "clock").read_text() == "1000000000"


def test_a_guest_that_does_not_answer_is_said(disk) -> None:
    with pytest.raises(ProviderError, match="the guest's clock could not be set: "):
        asyncio.run(set_clock("127.0.0.1:9", "password"))
