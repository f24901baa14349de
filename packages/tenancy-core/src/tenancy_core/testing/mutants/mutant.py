"""What a mutant is: an implementation with one mistake, and the tests that have to notice it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from tenancy_core.testing.suite import Suite, SuiteError

if TYPE_CHECKING:
    from tenancy_core.testing.suite import Suite as AnySuite

__all__ = ["Mutant", "mutant"]


@dataclass(frozen=True, slots=True)
class Mutant:
    """An implementation with one mistake.

    Attributes:
        name: Of the implementation.
        mistake: What it does wrong, in a sentence.
        case: The class that runs its suite on it; put it into a module for pytest to collect.
        caught_by: The tests that have to fail.
    """

    name: str
    mistake: str
    case: type[AnySuite]
    caught_by: tuple[str, ...]


def mutant(honest: type[Suite], product: type[Any], *caught_by: str, **changes: Any) -> Mutant:
    """Make a mutant out of the case of an honest implementation.

    Args:
        honest: A class that runs a suite on ``self.product``.
        product: The implementation with the mistake; its docstring says which.
        *caught_by: The tests that have to fail.
        **changes: Attributes of the case.

    Raises:
        SuiteError: The suite has no such test.
    """
    unknown = {*caught_by} - {*honest.promises()}
    if unknown or not caught_by:
        raise SuiteError(f"The suite of {honest.__name__} has no test {sorted(unknown)}.")
    values = {"product": product, "timeout": 20.0, "__module__": product.__module__, **changes}
    case = cast("type[Suite]", type(f"Test{product.__name__}", (honest,), values))
    sentence = (product.__doc__ or "").partition("\n\n")[0]
    return Mutant(product.__name__, " ".join(sentence.split()), case, caught_by)
