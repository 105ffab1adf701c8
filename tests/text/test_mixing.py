"""Mixed rows: fixed numbers per epoch, each source gone through before it repeats, and a pure function of (seed, epoch, place)."""

from __future__ import annotations

from collections import Counter

import numpy as np

from adapt.core.spans import Reading
from adapt.text.mixing import Ingredient, MixedRows, RowList, mixed
from adapt.text.packing import RowSource, StepOrder


def source(first: int, count: int) -> RowList:
    """Return rows that say which they are."""
    nothing = np.zeros(1, np.int64)
    return RowList([[Reading(inputs_T=np.array([first + i]), targets_T=nothing, kinds_T=nothing)] for i in range(count)])


def names(rows: RowSource, epoch: int) -> list[int]:
    return [int(rows.row(index, epoch)[0].inputs_T[0]) for index in range(len(rows))]


def mix(seed: int = 0) -> MixedRows:
    parts = [("task", source(0, 6), 6), ("other", source(100, 4), 8), ("general", source(200, 25), 5)]
    return MixedRows([Ingredient(name=name, source=rows, rows_per_epoch=n) for name, rows, n in parts], seed)


def test_an_epoch_has_each_sources_number_of_rows() -> None:
    rows = mix()
    assert len(rows) == 19
    for epoch in range(3):
        kinds = Counter(name // 100 for name in names(rows, epoch))
        assert kinds == {0: 6, 1: 8, 2: 5}
        assert Counter(name for name in names(rows, epoch) if name < 200) == {
            **dict.fromkeys(range(6), 1),
            **dict.fromkeys(range(100, 104), 2),
        }


def test_a_large_source_is_gone_through_before_a_row_of_it_comes_again() -> None:
    rows = mix()
    seen = [name for epoch in range(5) for name in names(rows, epoch) if name >= 200]
    assert sorted(seen) == list(range(200, 225))
    again = [name for epoch in range(5, 10) for name in names(rows, epoch) if name >= 200]
    assert sorted(again) == sorted(seen) and again != seen


def test_a_row_follows_from_seed_epoch_and_place_alone() -> None:
    fresh = mix()
    assert fresh.row(17, 3)[0].inputs_T == mix().row(17, 3)[0].inputs_T
    assert names(fresh, 7) == names(mix(), 7)
    assert names(mix(1), 0) != names(fresh, 0)


def test_steps_see_the_mix_at_its_ratio_and_can_start_anywhere() -> None:
    rows, order = mix(), StepOrder(n_rows=19, batch=4, seed=3)
    walked = [int(rows.row(*at)[0].inputs_T[0]) for step in range(19) for at in order.rows_at(step)]
    assert Counter(name // 100 for name in walked) == {0: 24, 1: 32, 2: 20}
    assert walked[40:44] == [int(mix().row(*at)[0].inputs_T[0]) for at in order.rows_at(10)]


def test_a_single_source_that_comes_once_an_epoch_is_taken_as_it_is() -> None:
    rows = source(0, 5)
    assert mixed([Ingredient(name="task", source=rows, rows_per_epoch=5)], seed=0) is rows
    assert len(mixed([Ingredient(name="task", source=rows, rows_per_epoch=12)], seed=0)) == 12


def test_sources_without_rows_are_left_out() -> None:
    parts = [
        Ingredient(name="none", source=RowList([]), rows_per_epoch=3),
        Ingredient(name="some", source=source(0, 2), rows_per_epoch=2),
    ]
    assert sorted(names(MixedRows(parts, 0), 0)) == [0, 1]
