"""`python -m pipelines.settings_page [output=docs/settings.md]`: the reference of all settings, from their own sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from adapt.core.faults import writable
from adapt.core.settings import Leaf
from pipelines.config.commands import COMMANDS
from pipelines.config.described import GROUPS, choices_of, default_groups, default_of, keys, router_keys, says, sections, type_of

_HEAD = """# Settings

Every key of `python -m pipelines.<command> key=value ...`, with its default. Written by `python -m pipelines.settings_page` from
the sentences beside the fields in the code; change them there, and run it again. `python -m pipelines.<command> --help` lists the
keys that one command reads.

Text (paths, names, tasks) is taken as it is typed; for your shell, put a word with spaces, brackets or parentheses into quotes:
`'data.corpus=[/data/新闻 (2024)/*.txt]'`. A comma separates the items of a `[list]`, and with `-m` the points of a sweep; an item
that has a comma itself goes into quotes: `'data.corpus=["a,b.txt"]'`.
"""


@dataclass(frozen=True, kw_only=True)
class PageConfig:
    """Where the page goes."""

    output: str = "docs/settings.md"


def page() -> str:
    """Return the page as Markdown."""
    found = [leaf for leaf in keys() if not leaf.path.startswith("model.router.")]
    parts = [_HEAD, "## Groups\n", "A group sets several keys at once: `engine=gpu`.\n", *_groups()]
    parts += ["\n## Top-level keys\n", *_table([leaf for leaf in found if "." not in leaf.path])]
    for section, about in sections():
        parts += [
            f"\n## {section}\n",
            about.says.replace("<", "&lt;") + "\n",
            *_table([leaf for leaf in found if leaf.path.startswith(f"{section}.")]),
        ]
        if section == "model":
            for router, own in router_keys().items():
                parts += [f"\n### model/router={router}\n", *(_table(own) if own else ["No keys of its own."])]
    parts += ["\n## What a command reads\n", "| command | keys |", "|---|---|"]
    for command in COMMANDS:
        if command.reads != ():
            read = "all" if command.reads is None else ", ".join(f"`{key}`" for key in dict.fromkeys(command.reads))
            parts.append(f"| `{command.name}` | {read} |")
    return "\n".join(parts) + "\n"


def write(config: PageConfig) -> int:
    """Write the page."""
    place = Path(config.output)
    with writable(place):
        place.write_text(page(), encoding="utf-8")
    return 0


def _groups() -> list[str]:
    chosen = default_groups()
    lines = ["| group | choices | default |", "|---|---|---|"]
    return lines + [f"| `{group}=` | {', '.join(choices_of(group))} | {chosen.get(group, 'none')} |" for group in GROUPS]


def _table(found: Sequence[Leaf]) -> list[str]:
    lines = ["| key | default | values | |", "|---|---|---|---|"]
    for leaf in found:
        default = default_of(leaf)
        cells = (f"`{leaf.path}`", f"`{default}`" if default else "mandatory", type_of(leaf), says(leaf).replace("<", "&lt;"))
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return lines
