"""`python -m pipelines.bench <name> [out=FILE.json] [option=value ...]`: print a benchmark's table and write its rows as JSON."""

from __future__ import annotations

import json
import os
import platform
import sys
from pathlib import Path

import torch

from adapt.core.artifacts import write_atomically
from adapt.core.errors import AdaptError, ConfigError
from adapt.core.faults import writable
from pipelines.bench.contract import all_benchmarks
from pipelines.ranks.launch import USER_ERROR_CODE


def main(arguments: list[str]) -> int:
    """Run one benchmark; return the exit code."""
    try:
        known = all_benchmarks()
        if arguments[:1] in (["--help"], ["-h"]):
            sys.stdout.write(
                f"{__doc__}\n\nBenchmarks:\n" + "".join(f"  {name}  {known.get(name).title}\n" for name in known.names())
            )
            return 0
        if not arguments or "=" in arguments[0]:
            raise ConfigError(f"name a benchmark; there are: {', '.join(known.names())}")
        benchmark = known.get(arguments[0])
        options = dict(_option(argument) for argument in arguments[1:])
        out = options.pop("out", None)
        rows = benchmark.run(options)
        machine = {"cores": os.cpu_count(), "threads": torch.get_num_threads(), "torch": torch.__version__}
        sys.stdout.write(f"{benchmark.title}\nbaseline: {benchmark.baseline}; {platform.machine()}, {machine}\n")
        sys.stdout.write(_table(rows) + "\n")
        if out is not None:
            content = {"name": benchmark.name, "baseline": benchmark.baseline, "machine": machine, "rows": rows}
            with writable(Path(out)):
                write_atomically(Path(out), json.dumps(content, indent=1) + "\n")
    except AdaptError as error:
        sys.stderr.write(f"error: {error}\n")
        return USER_ERROR_CODE
    return 0


def _option(argument: str) -> tuple[str, str]:
    key, equals, value = argument.partition("=")
    if not equals:
        raise ConfigError(f"'{argument}': expected option=value")
    return key, value


def _table(rows: list[dict[str, object]]) -> str:
    """Lay rows out in columns; of several rows, what is the same in all of them is said once, below."""
    same = [column for column in rows[0] if len(rows) > 1 and all(row[column] == rows[0][column] for row in rows)]
    columns = [column for column in rows[0] if column not in same]
    cells = [columns, *[[_cell(row[column]) for column in columns] for row in rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
    if same:
        lines.append("in every row: " + ", ".join(f"{column} {_cell(rows[0][column])}" for column in same))
    return "\n".join(lines)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
