"""Loads a script that has no suffix as a module, for its tests."""

import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType


def load(name: str) -> ModuleType:
    """Returns the script of this name, without running it."""
    spec = spec_from_loader(name, SourceFileLoader(name, str(Path(__file__).with_name(name))))
    assert spec and spec.loader
    module = sys.modules[name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
