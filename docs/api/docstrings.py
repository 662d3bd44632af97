"""Griffe extension for the API reference: lazy tables of names, and two headings."""

import ast
import re
from typing import Any

import griffe


class Docstrings(griffe.Extension):
    """Reads what Griffe itself does not: `lazy_loader` tables, Example and Shapes."""

    def on_module(self, *, mod: griffe.Module, **kwargs: Any) -> None:
        """Makes each name of a `lazy.attach` table a public member of the package."""
        if not mod.is_init_module:
            return
        for call in ast.walk(ast.parse(mod.source)):
            if isinstance(call, ast.Call) and ast.unparse(call.func) == "lazy.attach":
                tables = {word.arg: word.value for word in call.keywords}
                names = ast.literal_eval(tables.get("submod_attrs", ast.Dict([], [])))
                mod.exports = [name for public in names.values() for name in public]
                for submodule, public in names.items():
                    for name in public:
                        target = f"{mod.path}.{submodule}.{name}"
                        mod.set_member(name, griffe.Alias(name, target, parent=mod))

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Makes an Example a doctest, and Shapes a list with a line for each tensor."""
        if obj.docstring is None:
            return
        text = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.M)
        obj.docstring.value = re.sub(
            r"(?<=^Shapes:\n)(?:    .*\n?)+",
            lambda lines: re.sub(r"^ {4}(?=\S+: )", "    - ", lines[0], flags=re.M),
            text,
            flags=re.M,
        )
