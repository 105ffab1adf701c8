"""Many small cases of one property in one test: what varies only a seed or a size needs no test of its own in the report."""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable, Iterable
from typing import Any

Test = Callable[..., None]


def for_every(**values: Iterable[Any]) -> Callable[[Test], Test]:
    """Run a test with every combination of values, fixtures shared; the first failure ends it and says for which values."""
    choices = {name: list(of_name) for name, of_name in values.items()}
    assert all(choices.values()), "a test without a case cannot fail"

    def decorate(test: Test) -> Test:
        signature = inspect.signature(test)
        assert set(choices) <= set(signature.parameters), f"{test.__name__} takes no such values"

        @functools.wraps(test)
        def of_all(**fixtures: Any) -> None:
            for combination in itertools.product(*choices.values()):
                case = dict(zip(choices, combination, strict=True))
                try:
                    test(**fixtures, **case)
                except BaseException as error:
                    error.add_note(", ".join(f"{name}={value!r}" for name, value in case.items()))
                    raise

        fixtures = [parameter for name, parameter in signature.parameters.items() if name not in choices]
        of_all.__dict__["__signature__"] = signature.replace(parameters=fixtures)
        return of_all

    return decorate
