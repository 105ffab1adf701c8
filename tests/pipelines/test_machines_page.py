"""The page of machines: as the planner says today, and refusals where nothing fits."""

from __future__ import annotations

import re
from pathlib import Path

from pipelines.tools.machines_page import MACHINES, SIZES, Size, page

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_is_as_the_planner_says() -> None:
    written = (ROOT / "docs" / "machines.md").read_text(encoding="utf-8")
    assert written == page(), "run `python -m pipelines.machines_page`"
    assert all(f"| `{name}` |" in written for name in SIZES)


def test_a_cell_fits_its_machine_or_says_how_much_is_missing() -> None:
    size = Size.of("16b_pyramid")
    for machine in MACHINES:
        cell = size.on(machine)
        needed = int(re.findall(r"(\d+) GB", cell)[0])
        assert (needed > machine.memory_gb) is cell.startswith("no: ")
