"""Found by Python at its start through PYTHONPATH: makes the device pretend as soon as torch_npu has been imported."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any


class _AfterImport:
    """Finds torch_npu as the finder of folders does, with a loader that does more."""

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name) if name == "torch_npu" else None
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_install(module: ModuleType) -> None:
                execute(module)
                from tests.npu.soft.device import install

                install()

            spec.loader.exec_module = execute_and_install  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, _AfterImport())  # type: ignore[arg-type]
