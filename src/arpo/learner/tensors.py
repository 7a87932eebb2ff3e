"""Named tensors in a folder, in torch's distributed checkpoint format.

Invariant: what is written is the state as it was when `begin_save` was called, whatever happens to it afterwards; and a
folder that N ranks wrote can be read by any other number of ranks, or by none.

A state is a nested mapping of names to tensors; its leaves may be DTensors, of which every rank writes and reads its part.
"""

from __future__ import annotations

import contextlib
import pickle
import threading
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
from torch.distributed import ProcessGroup
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_loader import load as load_tensors
from torch.distributed.checkpoint.state_dict_saver import save as save_tensors


def begin_save(state: Mapping[str, Any], folder: Path, group: ProcessGroup | None = None) -> Future[None]:
    """Copy the state to the CPU, then write it in the background; the future ends when it is on the disk, or with an error.

    group: a gloo group of the ranks that hold parts of the state, all of which call this; None: this process holds all of
    it. Nothing else may use the group until the future ends.
    """
    stager = DefaultStager(
        StagingOptions(
            use_pinned_memory=False,
            use_shared_memory=False,
            use_async_staging=False,
            use_non_blocking_copy=False,
        )
    )
    staged = stager.stage(dict(state))
    stager.close()
    written: Future[None] = Future()

    def write() -> None:
        try:
            with _one_process():
                save_tensors(staged, checkpoint_id=folder, process_group=group, no_dist=group is None)
        except BaseException as error:  # whoever waits for the future decides
            written.set_exception(error)
        else:
            written.set_result(None)

    threading.Thread(target=write, name="write-tensors").start()
    return written


def load(state: Mapping[str, Any], folder: Path, group: ProcessGroup | None = None) -> None:
    """Fill the state's tensors in place with what a folder holds; with a group every rank calls this for its parts.

    Raises CheckpointException, KeyError, RuntimeError, OSError or ValueError when it is damaged or of another state.
    """
    with _one_process():
        load_tensors(dict(state), checkpoint_id=folder, process_group=group, no_dist=group is None)


def read(folder: Path, prefix: str) -> dict[str, torch.Tensor]:
    """The tensors below one name of the state, whole and on the CPU, by what follows `prefix.`; needs no process group.

    Raises what `load` raises; KeyError when there is nothing below the name.
    """
    try:
        known = FileSystemReader(folder).read_metadata().state_dict_metadata
    except (pickle.UnpicklingError, EOFError) as error:
        raise ValueError(f"the list of tensors in {folder} is damaged") from error
    wanted = {
        key: torch.empty(entry.size, dtype=entry.properties.dtype)
        for key, entry in known.items()
        if key.startswith(f"{prefix}.") and isinstance(entry, TensorStorageMetadata)
    }
    if not wanted:
        raise KeyError(f"no tensors below {prefix!r}")
    load(wanted, folder)
    return {key.removeprefix(f"{prefix}."): tensor for key, tensor in wanted.items()}


@contextlib.contextmanager
def _one_process() -> Iterator[None]:
    """One process that saves and loads without a group is what is meant, so torch need not warn of it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*in a single process.*")
        yield
