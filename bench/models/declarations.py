"""Tables that other packages and plug-in files add rows to: families, models, metrics. Never
imports torch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Generic, TypeVar

T = TypeVar("T")


class Registry(Generic[T]):
    """A table by name: the rows of ditbench, those of an entry-point group, and those that plug-in
    files declare."""

    ALL: ClassVar[list[Registry[Any]]] = []
    """Every table there is, for `ditbench.method.plugins`."""

    def __init__(
        self, what: str, group: str, kind: type[T], built_in: Callable[[], Mapping[str, T]]
    ) -> None:
        """`what` a row is called in messages; `group` of the entry points, each a module that
        declares rows or an object of `kind`; `built_in` reads the rows of ditbench."""
        self.what, self.group, self.kind = what, group, kind
        self._built_in = built_in
        self._own: dict[str, T] | None = None
        self._declared: dict[str, tuple[T, str]] = {}
        self._installed = False
        Registry.ALL.append(self)

    def rows(self) -> dict[str, T]:
        """Every row by name, those of ditbench first; ValueError for an entry point that cannot be
        loaded."""
        self._load_installed()
        return {**self._built_ins(), **{name: row for name, (row, _) in self._declared.items()}}

    def add(self, name: str, row: T, module: str) -> None:
        """Declare a row in the name of a module; ValueError for a name of another module's."""
        owner = self._declared[name][1] if name in self._declared else ""
        if name in self._built_ins():
            owner = "ditbench"
        if owner and owner != module:
            raise ValueError(
                f"{self.what} {name!r} is already there, from {owner}; choose another name"
            )
        self._declared[name] = row, module

    def declared_by(self, module: str) -> list[str]:
        """Names of the rows a module declared."""
        return [name for name, (_, owner) in self._declared.items() if owner == module]

    def module_of(self, name: str) -> str:
        """The module that declared a row; "" for a row of ditbench and for an unknown name."""
        return self._declared[name][1] if name in self._declared else ""

    def forget(self, module: str) -> None:
        """Remove the rows a module declared."""
        for name in self.declared_by(module):
            del self._declared[name]

    def _built_ins(self) -> dict[str, T]:
        if self._own is None:
            self._own = dict(self._built_in())
        return self._own

    def _load_installed(self) -> None:
        if self._installed:
            return
        self._installed = True  # before loading: an entry point may read the table itself
        from importlib.metadata import entry_points

        for entry in entry_points(group=self.group):
            try:
                row = entry.load()
            except Exception as error:
                raise ValueError(
                    f"entry point {entry.name!r} of {self.group} ({entry.value}) cannot be loaded: "
                    f"{type(error).__name__}: {error}"
                ) from error
            if isinstance(row, self.kind) and entry.name not in self._declared:
                self.add(entry.name, row, entry.value.partition(":")[0])


def calling_module() -> str:
    """Name of the module that called the function this is called in."""
    return str(sys._getframe(2).f_globals.get("__name__", ""))
