"""Whether what a plugin wrote can be called as the core is going to call it."""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["accepts", "flaw_of_function", "flaw_of_method"]

_AWAITABLE: Final = re.compile(r"Awaitable|Coroutine|Future|Task")


def accepts(function: object, *given: object, **named: object) -> bool:
    """Whether a function takes these arguments; true where it does not say what it takes."""
    if not callable(function):
        return False
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some that are written in C
        return True
    try:
        signature.bind(*given, **named)
    except TypeError:
        return False
    return True


def flaw_of_method(own: object, name: str, wanted: Callable[..., Any]) -> str | None:
    """Say what is wrong with a method of a product.

    Args:
        own: What the product has under the name.
        name: Of the method.
        wanted: The method of the Protocol, a function.
    """
    parameters = [*inspect.signature(wanted).parameters.values()][1:]
    call = f"{name}({', '.join(parameter.name for parameter in parameters)})"
    if not callable(own):
        return f"without the method {call}"
    awaited = inspect.iscoroutinefunction(wanted)
    if inspect.iscoroutinefunction(own) and not awaited:
        return (
            f"whose method {name} is async def; it is a plain def, which is called and not awaited"
        )
    if awaited and _is_plain(own):
        return f"whose method {name} is a plain def; it is async def, for it is awaited"
    by_name = {part.name: None for part in parameters if part.kind is part.KEYWORD_ONLY}
    if not accepts(own, *[None] * (len(parameters) - len(by_name)), **by_name):
        return f"whose method {name} cannot be called as {call}"
    return None


def flaw_of_function(own: object, *given: str) -> str | None:
    """Say what is wrong with an async function that somebody passed.

    Args:
        own: What was passed.
        given: Names of the arguments that it is going to be called with.
    """
    call = f"({', '.join(given)})"
    if not callable(own):
        return f"is a {type(own).__name__}, and no function"
    if _is_plain(own):
        return "is a plain def; write async def, for it is awaited"
    if not accepts(own, *given):
        return f"cannot be called with {call}"
    return None


def _is_plain(function: Callable[..., Any]) -> bool:
    """Whether a function surely returns nothing that can be awaited.

    A decorator may have made a plain function out of an async one, and one that hands on what
    another returns says so by its annotation.
    """
    inner = inspect.unwrap(function)
    if not (inspect.isfunction(inner) or inspect.ismethod(inner)):
        return False
    if inspect.iscoroutinefunction(inner) or inner.__name__ == "<lambda>":
        return False
    annotation: object = inner.__annotations__.get("return")
    text = annotation if isinstance(annotation, str) else repr(annotation)
    return _AWAITABLE.search(text) is None
