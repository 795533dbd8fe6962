"""Objects of the user's own, which settings name as `MODULE:NAME`; packages that are commands."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any

from brim.errors import ConfigError, first_line


def is_path_of_object(text: str) -> bool:
    """Return whether a text has the form `package.module:name`."""
    module, _, name = text.partition(":")
    return all(map(str.isidentifier, [*module.split("."), name]))


def find_object(path: str, key: str) -> Any:
    """Return the function or class that `MODULE:NAME` stands for; its module is run.

    Args:
        path: such as `checks.lengths:watch`.
        key: the setting that names it, for errors.

    Raises:
        ConfigError: the module cannot be imported, or has nothing of this name to be called.
    """
    module, _, name = path.partition(":")
    try:
        found = getattr(import_module(module), name, None)
    except Exception as error:  # whatever a module of the user's does when it is run
        raise ConfigError(
            f"{key}: {module} cannot be imported ({first_line(error)}); "
            "is its folder on PYTHONPATH?"
        ) from error
    if not callable(found):
        raise ConfigError(f"{key}: {module} has no function {name}; define it there")
    return found


def make_callable(package: str, function: Callable[..., Any]) -> None:
    """Have a package be called as one of its functions, as in `brim.compare(a, b)`.

    `brim.compare` is a package and a command. Whoever imports a package binds its name in the one
    around it to the module, whenever that comes: a function of that name would be there before the
    import and gone after it. So the module itself is what can be called, and `import brim.compare`
    and `from brim.compare import …` are as ever.

    Args:
        package: its `__name__`.
        function: what a call of it calls.
    """
    module = sys.modules[package]
    module.__class__ = type("CommandPackage", (ModuleType,), {"__call__": staticmethod(function)})
    module.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
