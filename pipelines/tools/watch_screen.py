"""The screen of `pipelines.watch`: a panel for each run, drawn anew every second. The only file that imports rich."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from adapt.core.errors import ConfigError, shown
from adapt.core.progress import spelled
from pipelines.stages.progress_record import DONE
from pipelines.tools.watch_views import RunView, expert_line, loss_line, progress_line

try:
    from rich.console import Console, Group, RenderableType
    from rich.live import Live
    from rich.panel import Panel
    from rich.progress_bar import ProgressBar
    from rich.text import Text
except ModuleNotFoundError as error:
    raise ConfigError("the screen needs rich; run `pip install 'moe-adapt[watch]'`, or add --plain") from error

_STEPS = "▁▂▃▄▅▆▇█"
_FULL = 3.0  # times an even share, from where on a bar is full
_MOST_LAYERS, _MOST_EXPERTS = 8, 96


def show_on_screen(look: Callable[[], list[RunView]], root: Path, every_s: float) -> None:
    """Draw what `look` returns until Ctrl-C; what was drawn last stays in the terminal."""
    with Live(drawn(look(), root), auto_refresh=False, console=Console()) as live:
        while True:
            time.sleep(every_s)
            live.update(drawn(look(), root), refresh=True)


def drawn(found: Sequence[RunView], root: Path) -> RenderableType:
    """Return the screen's content: a panel for each run that goes on, a line for each that ended."""
    parts: list[RenderableType] = [_running(view) if view.is_running else _ended(view) for view in found]
    return Group(*parts) if parts else Text(f"{root}: nothing runs, and nothing ended lately", style="dim")


def _running(view: RunView) -> Panel:
    record = view.record
    since = record.started if record.stage_started is None else record.stage_started
    parts: list[RenderableType] = []
    if view.done is not None:
        parts.append(ProgressBar(total=view.done[1], completed=view.done[0]))
    parts += [Text(shown(line)) for line in (progress_line(view), loss_line(view), expert_line(view)) if line]
    parts += _strips(view)
    title = Text(f"{shown(record.run)}: {shown(view.what)}, for {spelled(time.time() - since)}", style="bold")
    return Panel(Group(*parts) if parts else Text("…", style="dim"), title=title, title_align="left", border_style="cyan")


def _strips(view: RunView) -> list[Text]:
    """Draw a bar for each expert of each MoE layer: a low one has few tokens, a full one three times its share or more."""
    shares = [] if view.training is None else view.training.shares
    lines = []
    for number, layer in enumerate(shares[:_MOST_LAYERS]):
        bars = "".join(_bar(share * len(layer)) for share in layer[:_MOST_EXPERTS])
        lines.append(Text.assemble((f"layer {number + 1:>2} ", "dim"), (bars, "green")))
    return lines


def _bar(load: float) -> str:
    return "·" if load == 0 else _STEPS[min(int(load / _FULL * len(_STEPS)), len(_STEPS) - 1)]


def _ended(view: RunView) -> Text:
    record = view.record
    style = "green" if record.ended_as == DONE else "red"
    where = f" in {view.what}" if record.stage else ""
    head = f"{shown(record.run)}: {record.ended_as}{where} {spelled(time.time() - record.at)} ago"
    return Text.assemble((head, style), f": {shown(record.said)}" if record.said else "")
