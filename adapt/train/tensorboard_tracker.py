"""TensorBoard: one directory of event files for one training. The only file that uses its writer."""

from __future__ import annotations

import importlib.util
import json
import shutil
import threading
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from adapt.train.tracking import RunIdentity, TrackedTable

_DIRECTORY = "tensorboard"


def is_installed() -> bool:
    return importlib.util.find_spec("tensorboard") is not None


class TensorBoardTracker:
    """One run of TensorBoard below `<directory>/tensorboard/<name>`; event files of an earlier process are replaced."""

    def __init__(self, identity: RunIdentity) -> None:
        from torch.utils.tensorboard import SummaryWriter  # fails to import without the package

        place = identity.directory / _DIRECTORY / identity.name.replace("/", "_")
        shutil.rmtree(place, ignore_errors=True)
        _hear_writers_no_more()
        self._writer = SummaryWriter(str(place))
        self._last_step = 0
        self.hint = f"tensorboard --logdir {place.parent}"
        self._writer.add_text("settings", f"```json\n{json.dumps(identity.config, indent=1, ensure_ascii=False)}\n```")

    def follow(self, history: Sequence[Mapping[str, float]]) -> None:
        for line in history:
            self.log(line, int(line["step"]))

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._last_step = max(self._last_step, step)
        for name, value in metrics.items():
            if name != "step":
                self._writer.add_scalar(name, value, step)

    def conclude(self, summary: Mapping[str, Any], tables: Mapping[str, TrackedTable]) -> None:
        words = {name: value for name, value in summary.items() if isinstance(value, str)}
        for name, value in summary.items():
            if name not in words:
                self._writer.add_scalar(name, value, self._last_step)
        if words:
            tables = {"results": TrackedTable(columns=("name", "value"), rows=[*words.items()]), **tables}
        for name, table in tables.items():
            lines = [_row(table.columns), _row(["---"] * len(table.columns)), *map(_row, table.rows)]
            self._writer.add_text(name, "\n".join(lines), self._last_step)

    def __enter__(self) -> TensorBoardTracker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._writer.close()


def _hear_writers_no_more() -> None:
    """Keep the traceback of a writer's own thread from the terminal: its error is raised at the next call, too."""
    hear = threading.excepthook
    if getattr(hear, "__module__", None) == __name__:
        return

    def heard(found: threading.ExceptHookArgs) -> None:
        if not type(found.thread).__module__.startswith("tensorboard."):
            hear(found)

    threading.excepthook = heard


def _row(cells: Sequence[Any]) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"
