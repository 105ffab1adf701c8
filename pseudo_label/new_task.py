"""The file of a new task: fields, label words and three prompts in the language of its texts, as YAML that a person goes on with.

Prompts are general ones, so that any label words fit. In languages with spaces the space before a word belongs to the word
(" good"), since the templates end without one: the tokens are then those of running text.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

import yaml


class Language(enum.Enum):
    """The language of a task's prompts; `auto` goes by the script of its texts."""

    AUTO = "auto"
    ZH = "zh"
    EN = "en"


@dataclass(frozen=True, kw_only=True)
class NewLabel:
    """A label as the rows spell it, its word, and more words for it."""

    name: str
    word: str
    synonyms: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class NewTask:
    """What a new task's file is written from; `texts` are one or two columns, `alike` is the label of pairs that mean the same.

    Where texts `are_sentences`, templates put no full stop behind them.
    """

    name: str
    source: str
    texts: Sequence[str]
    label: str | None
    labels: Sequence[NewLabel]
    language: Language
    alike: str | None = None
    are_sentences: bool = True

    @property
    def fields(self) -> list[str]:
        return ["text"] if len(self.texts) == 1 else ["text1", "text2"]


@dataclass(frozen=True, kw_only=True)
class _Prompt:
    """A prompt of new tasks; where the label is at the start, its word has no space before it."""

    name: str
    template: str
    criterion: str | None = None
    begins_with_label: bool = False


_LABEL_FIRST = "label_first"
_PROMPTS = {
    (Language.ZH, 1): (
        _Prompt(name="reference", template="{text}{stop}这段话属于{label}"),
        _Prompt(name="about", template="{text}{stop}总之，{label}"),
        _Prompt(name=_LABEL_FIRST, template="{label}：{text}", criterion="channel", begins_with_label=True),
    ),
    (Language.ZH, 2): (
        _Prompt(name="reference", template="{text1}{comma}{text2}{comma}这两句话的关系是{label}"),
        _Prompt(name="about", template="{text1}{comma}{text2}{comma}总之，{label}"),
        _Prompt(name="between", template="{text1}{comma}{label}，{text2}", criterion="total"),
    ),
    (Language.EN, 1): (
        _Prompt(name="reference", template="{text}{stop} All in all, this is about:{label}"),
        _Prompt(name="about", template="{text}{stop} In one word:{label}"),
        _Prompt(name=_LABEL_FIRST, template="{label}: {text}", criterion="channel", begins_with_label=True),
    ),
    (Language.EN, 2): (
        _Prompt(name="reference", template="{text1}{stop} {text2}{stop} The two sentences are:{label}"),
        _Prompt(name="about", template="{text1} / {text2} In one word:{label}"),
        _Prompt(name="between", template="{text1} (Relation:{label}) {text2}", criterion="total"),
    ),
}


def task_text(task: NewTask) -> str:
    """Return the task's file."""
    is_spaced = task.language is Language.EN
    words = {label.name: _word(label.word, is_spaced) for label in task.labels}
    more = {label.name: [_word(word, is_spaced) for word in label.synonyms] for label in task.labels if label.synonyms}
    lines = [
        f"# Rows of {_comment(task.source)}. docs/tasks.md has every key and a checklist.",
        f"fields: {_flow({name: {'path': path} for name, path in zip(task.fields, task.texts, strict=True)})}",
        f"shorten: {_flow(task.fields)}",
    ]
    lines += [f"label_path: {_flow(task.label)}"] if task.label is not None else []
    lines += [f"label_words: {_typed(words)}", "prompts:"]
    for prompt in _PROMPTS[task.language, len(task.texts)]:
        lines += [f"  {prompt.name}:", f"    template: {_quoted(_ended(prompt.template, task))}"]
        if prompt.begins_with_label and is_spaced:
            lines.append(f"    label_words: {_typed({label.name: label.word for label in task.labels})}")
        if prompt.criterion is not None:
            lines.append(f"    criterion: {prompt.criterion}")
        if prompt.name == "about" and (more or task.alike is None):
            lines += _synonyms(more, task.labels)
    lines += _rules(task)
    return "\n".join(lines) + "\n"


def _synonyms(more: dict[str, list[str]], labels: Sequence[NewLabel]) -> list[str]:
    advice = "    # Five to ten words a label that texts really have and that point to this label only bring most of the accuracy."
    if not more:
        example = ", ".join(f"{_typed(label.name)}: [...]" for label in labels[:2])
        return [advice, f"    # synonyms: {{{example}}}"]
    return [advice, "    synonyms:", *(f"      {_typed(name)}: {_typed(words)}" for name, words in more.items())]


def _rules(task: NewTask) -> list[str]:
    if task.alike is None:
        return []
    weights = {label.name: 1.0 if label.name == task.alike else -1.0 for label in task.labels}
    rule = {"measure": "overlap", "fields": list(task.fields), "weights": weights}
    return [
        "# Without a model: how many characters or words the two texts have in common.",
        "lexical: {uses_words: false, rounds: 0}",
        "rules:",
        f"  - {_flow(rule)}",
    ]


def _word(word: str, is_spaced: bool) -> str:
    return f" {word}" if is_spaced and word[:1].isascii() else word


def _ended(template: str, task: NewTask) -> str:
    """Put signs behind texts that bring none of their own."""
    stop, comma = ("", "") if task.are_sentences else (".", ",") if task.language is Language.EN else ("。", "，")
    return template.replace("{stop}", stop).replace("{comma}", comma)


class _AsTyped(yaml.SafeDumper):
    """Writes `0`, `yes` and `~` without quotes where a task's file keeps them as they are typed."""


_AsTyped.yaml_implicit_resolvers = {}


def _typed(value: object) -> str:
    return _one_line(yaml.dump(value, Dumper=_AsTyped, default_flow_style=True, allow_unicode=True, sort_keys=False, width=1 << 30))


def _one_line(text: str) -> str:
    return text.removesuffix("\n").removesuffix("\n...")


def _flow(value: object) -> str:
    return _one_line(yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, sort_keys=False, width=1 << 30))


def _quoted(text: str) -> str:
    return yaml.safe_dump(text, default_style='"', allow_unicode=True, width=1 << 30).removesuffix("\n")


def _comment(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)
