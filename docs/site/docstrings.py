"""What the reader of docstrings does not see by itself."""

from __future__ import annotations

import ast
from typing import Any

from griffe import (
    Attribute,
    Docstring,
    DocstringSectionKind,
    ExprCall,
    ExprKeyword,
    Extension,
    Function,
    Module,
    Object,
)


class Repaired(Extension):
    """Descriptions of settings, and the types of parameters that are described together."""

    def on_attribute_instance(self, *, attr: Attribute, **_: Any) -> None:
        """Take ``Field(description=...)`` as the docstring of a setting."""
        call = attr.value
        if attr.docstring or not isinstance(call, ExprCall) or str(call.function) != "Field":
            return
        for argument in call.arguments:
            if isinstance(argument, ExprKeyword) and argument.name == "description":
                text = ast.literal_eval(str(argument.value))
                attr.docstring = Docstring(text, lineno=attr.lineno, parent=attr)

    def on_package(self, *, pkg: Module, **_: Any) -> None:
        """Give each of ``a, b, c`` its own type and default, not those of the first."""
        _repair(pkg)


def _repair(owner: Object) -> None:
    for member in owner.members.values():
        if member.is_alias:
            continue
        if isinstance(member, Function) and member.docstring:
            _repair_parameters(member, member.docstring)
        elif isinstance(member, Object):
            _repair(member)


def _repair_parameters(function: Function, docstring: Docstring) -> None:
    for section in docstring.parsed:
        if section.kind is not DocstringSectionKind.parameters:
            continue
        for described in section.value:
            if described.name in function.parameters:
                parameter = function.parameters[described.name]
                described.annotation = parameter.annotation
                described.value = None if parameter.default is None else str(parameter.default)
