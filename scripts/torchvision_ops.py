"""Lets torchvision be imported beside a CPU torch: started by a `.pth` of the vLLM test environment, in every process.

torchvision's wheel is built for CUDA. Without that library its operators do not load, and importing it fails on
those that are given a shape function. Declaring them beforehand is all that is missing: nothing calls them.
"""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

_declared: list[Any] = []
"""A library's declarations last as long as it does."""


class _DeclaringFinder(MetaPathFinder):
    """Finds nothing itself; declares the operators when torchvision is about to be imported."""

    def find_spec(
        self, fullname: str, path: Any = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """See `importlib.abc.MetaPathFinder`."""
        if fullname == "torchvision" and not _declared and PathFinder.find_spec("torch"):
            import torch

            library = torch.library.Library("torchvision", "DEF")
            for name in ("nms", "qnms"):
                library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            _declared.append(library)
        return None


sys.meta_path.insert(0, _DeclaringFinder())
