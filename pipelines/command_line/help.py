"""What `--help` prints: a command's keys by section, the groups with their choices, two examples; and the menu of all commands."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from adapt.core.settings import Leaf
from pipelines.config.commands import COMMANDS, Command
from pipelines.config.described import GROUPS, choices_of, default_groups, default_of, keys, says, sections, type_of

WIDTH = 100
_FLAGS = (
    ("-m, --multirun", "run once for every combination of comma-separated values: -m seed=1,2 task=tnews,eprstmt"),
    ("--cfg job", "print every key with the value that this command line gives it, and run nothing"),
    ("--info defaults", "print which files the values come from"),
    ("--help", "print this; with model/router=NAME before it, that router's keys"),
)


def menu() -> str:
    """Return the stages in the order data flows, then the other commands, a sentence each."""
    stages = [(command.name, command.says) for command in COMMANDS if command.is_stage]
    others = [(command.name, command.says) for command in COMMANDS if not command.is_stage]
    lines = ["Adapt a language model to tasks without labels.", "", "usage: python -m pipelines.<command> key=value ..."]
    lines += ["", "stages, in the order data flows:", *_table(stages)]
    lines += ["", "other commands:", *_table(others)]
    lines += ["", "`python -m pipelines.<command> --help` lists the keys that a command reads."]
    lines += ["A first run of everything: python -m pipelines.run experiment=demo"]
    lines += ["A task of your own: python -m pipelines.init data=FILE"]
    return "\n".join(lines) + "\n"


def help_of(name: str, words: Sequence[str] = ()) -> str:
    """Return a command's help; choices of groups among `words` (`model/router=top2`) decide which keys and defaults are shown."""
    command = next(command for command in COMMANDS if command.name == name)
    groups = default_groups()
    for word in words:
        group, _, choice = word.partition("=")
        if group in GROUPS and choice in choices_of(group):
            groups[group] = choice
    read = [leaf for leaf in keys(groups) if _is_read(leaf.path, command)]
    lines = [command.says, "", f"usage: python -m pipelines.{name} [-m] key=value ..."]
    lines += ["", "examples:", *(f"  python -m pipelines.{name} {example}" for example in command.examples)]
    lines += ["", "keys:", *_entries([leaf for leaf in read if "." not in leaf.path])]
    for section, about in sections():
        inside = [leaf for leaf in read if leaf.path.startswith(f"{section}.")]
        if inside:
            lines += ["", f"{section}: {about.says}", *_entries(inside)]
    lines += ["", "groups (group=choice sets several keys at once):", *_groups(command, groups)]
    lines += ["", "flags:", *_table(_FLAGS), "", "Mistakes end with one line and exit code 2. docs/settings.md has all keys."]
    return "\n".join(lines) + "\n"


def _is_read(path: str, command: Command) -> bool:
    return command.reads is None or any(path == key or path.startswith(f"{key}.") for key in command.reads)


def _groups(command: Command, groups: dict[str, str]) -> list[str]:
    shown = [
        group for group in GROUPS
        if group == "experiment" or command.reads is None or any(key.split(".")[0] == group.split("/")[0] for key in command.reads)
    ]  # fmt: skip
    rows = [(f"{group}=", f"{', '.join(choices_of(group))}{_default(groups.get(group))}") for group in shown]
    if command.reads is None or "tasks" in command.reads:
        rows.append(("task=", f"{', '.join(choices_of('task'))}, or NAME of task_dir"))
    return _table(rows)


def _default(choice: str | None) -> str:
    return "" if choice is None else f" (here: {choice})"


def _entries(found: Sequence[Leaf]) -> list[str]:
    lines: list[str] = []
    for leaf in found:
        default = default_of(leaf)
        head = f"{leaf.path}={default}" if default else f"{leaf.path} (mandatory)"
        lines += textwrap.wrap(
            f"{head}  [{type_of(leaf)}]", WIDTH, initial_indent="  ", subsequent_indent="        ", break_on_hyphens=False
        )
        lines += textwrap.wrap(says(leaf), WIDTH, initial_indent="      ", subsequent_indent="      ", break_on_hyphens=False)
    return lines


def _table(rows: Sequence[tuple[str, str]]) -> list[str]:
    """Return rows of a name and its words, aligned and wrapped."""
    width = max(len(name) for name, _ in rows) + 4
    lines: list[str] = []
    for name, words in rows:
        first = f"  {name}".ljust(width)
        lines += _wrapped(words, first, " " * width)
    return lines


def _wrapped(text: str, first: str, further: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=first, subsequent_indent=further, break_on_hyphens=False)
