"""The decorator that loops over cases inside one test: every case runs, and a failure names its values."""

from __future__ import annotations

import inspect

import pytest

from tests.support.every_case import for_every


def test_every_combination_runs_and_fixtures_are_passed_on() -> None:
    seen = []

    @for_every(seed=range(2), beam=[1, 5])
    def test(tmp_path: str, beam: int, seed: int) -> None:
        seen.append((tmp_path, seed, beam))

    assert list(inspect.signature(test).parameters) == ["tmp_path"]
    test(tmp_path="here")
    assert seen == [("here", 0, 1), ("here", 0, 5), ("here", 1, 1), ("here", 1, 5)]


@pytest.mark.parametrize("kind", [AssertionError, KeyError, pytest.fail.Exception])
def test_a_failure_names_the_values_of_its_case(kind: type[BaseException]) -> None:
    @for_every(seed=range(9))
    @for_every(word=["a", "b"])
    def test(seed: int, word: str) -> None:
        if (seed, word) == (3, "b"):
            raise kind("planted")

    with pytest.raises(kind) as caught:
        test()
    assert caught.value.__notes__ == ["word='b'", "seed=3"]


def test_a_test_without_a_case_and_a_value_that_nobody_takes_are_mistakes() -> None:
    with pytest.raises(AssertionError, match="without a case"):
        for_every(seed=[])
    with pytest.raises(AssertionError, match="no such values"):
        for_every(seeds=[1])(test_every_combination_runs_and_fixtures_are_passed_on)
