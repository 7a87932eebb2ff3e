"""What is left out while torch and transformers are loaded, and that it is there again afterwards."""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from arpo.imports import quick_imports


@pytest.fixture
def optional(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a package that is installed and hidden."""
    (tmp_path / "seldom_used.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("arpo.imports.UNUSED", ("seldom_used",))
    monkeypatch.setattr(gc, "freeze", lambda: None)  # the tests' own objects stay collectable
    return "seldom_used"


def test_hidden_packages_are_there_again_afterwards_even_after_an_error(optional: str) -> None:
    with contextlib.suppress(ZeroDivisionError), quick_imports():
        assert not gc.isenabled()
        assert importlib.util.find_spec(optional) is None
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module(optional)
        raise ZeroDivisionError
    assert gc.isenabled()
    assert importlib.import_module(optional).__name__ == optional


def test_what_is_loaded_already_stays(optional: str) -> None:
    loaded = importlib.import_module(optional)
    with quick_imports():
        assert importlib.import_module(optional) is loaded
    assert sys.modules.pop(optional) is loaded


def test_training_loads_without_what_it_does_not_use_and_adapters_can_still_be_made() -> None:
    program = """
import sys
from arpo.imports import UNUSED, quick_imports
with quick_imports():
    from arpo.trainer.train import train
assert not {*UNUSED} & sys.modules.keys(), "something of ours needs it"
from peft import LoraConfig
assert "accelerate" in sys.modules, "peft needs it no longer, and nothing is hidden from anybody"
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
