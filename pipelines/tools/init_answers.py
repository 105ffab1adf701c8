"""A person's answers about a new task's file: the columns of texts and labels, and the labels' words.

Answers are flags, or are asked for on a terminal with a guess to confirm. Without a terminal nothing is guessed: one line names the
flags that are missing, with the guesses filled in.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import yaml

from adapt.core.errors import ConfigError, counted
from adapt.core.registry import suggest
from pseudo_label.columns import Survey, guess_label, guess_texts, is_no_label
from pseudo_label.gold import NoLabel, label_of
from pseudo_label.new_task import NewLabel

NO_COLUMN, ID_COLUMN = "none", "id"
_SHOWN_COLUMNS, _SHOWN_VALUES, _SHOWN_CHARACTERS = 20, 8, 40
_WIDE_SIGNS = str.maketrans({"：": ": ", "，": ", ", "｛": "{", "｝": "}", "［": "[", "］": "]", "【": "[", "】": "]"})


@dataclass(frozen=True, kw_only=True)
class Answers:
    """The columns of texts (one or two), that of labels if there is one, and the labels with their words."""

    texts: list[str]
    label: str | None
    labels: list[NewLabel]
    alike: str | None


class Terminal:
    """Where a person answers, if one is there."""

    @property
    def is_there(self) -> bool:
        return sys.stdin.isatty() and sys.stdout.isatty()

    def say(self, text: str) -> None:
        sys.stdout.write(f"{text}\n")

    def ask(self, question: str, default: str = "") -> str:
        """Return a line, or `default` for an empty one.

        Raises:
            ConfigError: there are no more lines.
        """
        sys.stdout.write(f"{question}{f' [{default}]' if default else ''}: ")
        sys.stdout.flush()
        line = sys.stdin.readline()
        if not line:
            raise ConfigError("no answer; nothing was written")
        return line.strip() or default


def answers_for(
    name: str,
    found: Survey,
    text: str | None,
    label: str | None,
    labels: str | None,
    alike: str | None,
    terminal: Terminal,
) -> Answers:
    """Take answers from flags, and the others from the terminal.

    Raises:
        ConfigError: an answer is missing and nobody can be asked, names no column, or does not fit the labels of the rows.
    """
    guessed_texts = guess_texts(found)
    guessed_label = guess_label(found, guessed_texts if text is None else _listed(text))
    can_ask = terminal.is_there
    if not can_ask:
        _refuse_missing(name, found, text, label, labels, guessed_texts, guessed_label)
    elif text is None or label is None or labels is None:
        terminal.say(described(name, found))
    texts = _texts(name, found, text, guessed_texts, terminal)
    column = _label_column(name, found, texts, label, guessed_label, terminal)
    _refuse_id(texts, column)
    _refuse_spaced(name, found, column)
    given = _labels_of(labels) if labels is not None else _asked_labels(found, column, terminal)
    if len(given) < 2:
        raise ConfigError(f"labels: needs at least two classes, has {len(given)}; write 'labels={{0: WORD, 1: WORD}}'")
    _refuse_words(given)
    if column is not None:
        _refuse_unnamed(name, found, column, given)
    if alike is None and can_ask and len(texts) == 2 and (text is None or labels is None):
        alike = terminal.ask(f"Which label means that the two texts mean the same ({_names(given)}; empty: none)?") or None
    if alike is not None and len(texts) < 2:
        raise ConfigError(f"alike={alike}: is for pairs of texts; leave it out, or give text=[A, B]")
    if alike is not None and alike not in (known := [item.name for item in given]):
        raise ConfigError(f"alike: unknown label '{alike}'{suggest(alike, known)}; there are: {', '.join(known)}")
    return Answers(texts=texts, label=column, labels=given, alike=alike)


def described(name: str, found: Survey) -> str:
    """Return what a file has: its columns with an example or their values."""
    lines = [f"{name}: {counted(found.rows, 'row')}"]
    width = max(len(column) for column in found.names[:_SHOWN_COLUMNS])
    for column in list(found.columns.values())[:_SHOWN_COLUMNS]:
        labels = column.labels
        if 0 < len(labels) <= _SHOWN_VALUES and column.values is not None and 2 * len(labels) <= column.filled:
            said = ", ".join(f"{value} ({column.values[value]:,})" for value in labels)
        else:
            said = column.example[:_SHOWN_CHARACTERS].replace("\n", " ") + (
                "..." if len(column.example) > _SHOWN_CHARACTERS else ""
            )
        empty = found.rows - column.filled
        lines.append(f"  {column.name:<{width}}  {said}{f'   ({empty:,} empty)' if empty else ''}")
    rest = len(found.columns) - _SHOWN_COLUMNS
    return "\n".join([*lines, *([f"  and {rest} more columns"] if rest > 0 else [])])


def _refuse_missing(
    name: str,
    found: Survey,
    text: str | None,
    label: str | None,
    labels: str | None,
    texts: Sequence[str],
    column: str | None,
) -> None:
    """Raise ConfigError with the flags that only a person can fill, the guesses among them."""
    wanted: list[str] = []
    if text is None:
        wanted.append("text=" + (texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]" if texts else "COLUMN"))
    if label is None and column is not None:
        wanted.append(f"label={column}")
    if labels is None:
        meant = column if label is None else label if label in found.columns else None
        _refuse_spaced(name, found, meant)
        named = [] if meant is None else found.columns[meant].labels
        words = ", ".join(f"{value}: {value if _has_letters(value) else 'WORD'}" for value in named[:_SHOWN_VALUES])
        more = ", ..." if len(named) > _SHOWN_VALUES else ""
        wanted.append(f"labels={{{words}{more}}}" if named else "labels=[WORD, WORD]")
    if wanted:
        there = ", ".join(found.names[:_SHOWN_COLUMNS])
        raise ConfigError(f"{name}: nobody can be asked without a terminal; give {shlex.join(wanted)} (columns: {there})")


def _texts(name: str, found: Survey, text: str | None, guessed: Sequence[str], terminal: Terminal) -> list[str]:
    while True:
        said = text
        if said is None:
            said = terminal.ask("Which column is the text? (Two with a comma between for pairs of texts)", ", ".join(guessed))
        texts = [said] if said in found.columns else _listed(said)
        try:
            for column in texts:
                _refuse_no_column(name, found, "text", column)
            if not 1 <= len(texts) <= 2 or len(set(texts)) < len(texts):
                raise ConfigError(f"text={said}: give one column, or two different ones for pairs of texts")
        except ConfigError as error:
            if text is not None:
                raise
            terminal.say(str(error))
            continue
        return texts


def _label_column(
    name: str, found: Survey, texts: Sequence[str], label: str | None, guessed: str | None, terminal: Terminal
) -> str | None:
    while True:
        said = label
        if said is None:
            others = [column for column in found.names if column not in texts]
            if not others or not terminal.is_there:
                return None  # no column looks like labels, else it would have been asked for
            said = terminal.ask(f"Which column has the labels? ({NO_COLUMN}: rows have no labels)", guessed or NO_COLUMN)
        if said == NO_COLUMN and said not in found.columns:
            return None
        try:
            _refuse_no_column(name, found, "label", said)
            if said in texts:
                raise ConfigError(f"label={said}: is a column of texts; give another one, or label={NO_COLUMN}")
        except ConfigError as error:
            if label is not None:
                raise
            terminal.say(str(error))
            continue
        return said


def _refuse_no_column(name: str, found: Survey, key: str, column: str) -> None:
    if column not in found.columns:
        there = ", ".join(found.names[:_SHOWN_COLUMNS])
        raise ConfigError(f"{key}: {name} has no column '{column}'{suggest(column, found.names)}; it has: {there}")
    if not found.columns[column].filled:
        raise ConfigError(f"{key}: column '{column}' of {name} is empty; give another one")


def _asked_labels(found: Survey, column: str | None, terminal: Terminal) -> list[NewLabel]:
    """Ask for the word of each label and for more words; a label that has letters may be its own word."""
    terminal.say(
        "What are the classes called, in the language of the texts? More words that point to a class help much: commas between."
    )
    names = found.columns[column].labels if column is not None else []
    if not names:
        while len(names) < 2:
            names = _listed(terminal.ask("Names of the classes, with commas between"))
    given = []
    for name in names:
        words: list[str] = []
        may_be_none = f" ({NO_COLUMN}: rows with it have no label)" if is_no_label(name) else ""
        while not words:
            words = _listed(terminal.ask(f"Words for '{name}'{may_be_none}", name if _has_letters(name) else ""))
        if may_be_none and words == [NO_COLUMN]:
            continue
        given.append(NewLabel(name=name, word=words[0], synonyms=tuple(dict.fromkeys(words[1:]))))
    return given


def _labels_of(said: str) -> list[NewLabel]:
    """Read `{label: word}`, `{label: [word, word]}` or `[word, word]`; values stay text, full-width signs are read too.

    Raises:
        ConfigError: it is neither, or names a label twice.
    """
    mend = "write 'labels={0: WORD, 1: WORD}', with a space behind each colon"
    try:
        node = yaml.compose(said.strip().translate(_WIDE_SIGNS), Loader=yaml.BaseLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"labels={said}: cannot be read; {mend}") from error
    given: list[NewLabel] = []
    if isinstance(node, yaml.SequenceNode):
        given = [NewLabel(name=word, word=word) for word in _scalars(node.value, said, mend)]
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            name, words = _scalars([key], said, mend)[0], value
            if isinstance(words, yaml.ScalarNode) and not words.value and ":" in name:  # `{0:bad}`
                name, _, word = name.partition(":")
                given.append(NewLabel(name=name.strip(), word=word.strip()))
                continue
            found = _scalars(words.value if isinstance(words, yaml.SequenceNode) else [words], said, mend)
            if not found or not all(found):
                raise ConfigError(f"labels: label '{name}' has no word; {mend}")
            given.append(NewLabel(name=name, word=found[0], synonyms=tuple(dict.fromkeys(found[1:]))))
    else:
        raise ConfigError(f"labels={said}: is no list of classes; {mend}")
    twice = next((item.name for item in given if [x.name for x in given].count(item.name) > 1), None)
    if twice is not None:
        raise ConfigError(f"labels: label '{twice}' stands twice")
    return given


def _scalars(nodes: Sequence[yaml.Node], said: str, mend: str) -> list[str]:
    if not all(isinstance(node, yaml.ScalarNode) for node in nodes):
        raise ConfigError(f"labels={said}: is nested; {mend}")
    return [str(node.value).strip() for node in nodes]


def _refuse_words(given: Sequence[NewLabel]) -> None:
    """Raise ConfigError where two labels have a word in common, which no text could tell apart."""
    said: dict[str, str] = {}
    for item in given:
        for word in (item.word, *item.synonyms):
            if said.setdefault(word, item.name) != item.name:
                raise ConfigError(f"labels: '{said[word]}' and '{item.name}' have the word '{word}' in common; give each its own")


def _refuse_id(texts: Sequence[str], column: str | None) -> None:
    """Raise ConfigError where a column of texts or labels has the name under which rows' ids are written."""
    key = "text" if ID_COLUMN in texts else "label" if column == ID_COLUMN else None
    if key is not None:
        raise ConfigError(f"{key}={ID_COLUMN}: rows have their ids under this name; give the column another one in the file")


def _refuse_spaced(name: str, found: Survey, column: str | None) -> None:
    """Raise ConfigError where labels have spaces around them, with which they would be other labels."""
    values = None if column is None else found.columns[column].values
    spaced = [value for value in values or () if value != value.strip()]
    if values and spaced:
        count = sum(values[value] for value in spaced)
        raise ConfigError(
            f"label={column}: {name} has labels with spaces around them in {count:,} rows ('{spaced[0]}'); "
            "take them out of the file"
        )


def _refuse_unnamed(name: str, found: Survey, column: str, given: Sequence[NewLabel]) -> None:
    """Raise ConfigError where rows have a label that is not among those given, or the column has too many values for labels."""
    values = found.columns[column].values
    if values is None:
        raise ConfigError(f"label={column}: has too many different values for labels; give another column, or label={NO_COLUMN}")
    words = {item.name: item.word for item in given}
    for value, count in values.most_common():
        try:
            label_of(value, words, None)
        except NoLabel as error:
            raise ConfigError(
                f"labels: column '{column}' of {name} has '{value}' in {count:,} rows, and {error}; name it"
            ) from error
    if not any(label_of(value, words, None) for value in values):
        raise ConfigError(
            f"labels: column '{column}' of {name} has none of them; it has: {', '.join(list(values)[:_SHOWN_VALUES])}"
        )


def _listed(said: str) -> list[str]:
    inside = said.strip().translate(_WIDE_SIGNS)
    inside = inside.removeprefix("[").removesuffix("]") if inside.startswith("[") else inside
    return list(dict.fromkeys(item.strip() for item in re.split(r"[,，、]", inside) if item.strip()))


def _has_letters(value: str) -> bool:
    return any(c.isalpha() for c in value)


def _names(given: Sequence[NewLabel]) -> str:
    return ", ".join(item.name for item in given)
