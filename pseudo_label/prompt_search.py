"""Judging prompts without labels, and the files they come from.

Legend: N rows, C labels.

A file is a YAML list. An entry with a template is a prompt; one without is a named set of label words:

    - {name: plain, label_words: {good: 满意, bad: 不满意}}
    - {name: stars, label_words: {good: 好评, bad: 差评}}
    - name: says                            # the task's own label words
      template: "{sentence}，这句话表达的是{label}"
    - name: total                           # crossed: total.task, total.stars and total.3
      template: "{sentence}，总之，{label}"
      label_words: [task, stars, {good: 很好, bad: 很差}]
    - name: first
      template: "{label}：{sentence}"
      label_words: stars                    # a set by name; a mapping stands for itself
      criterion: channel                    # else `sum`

`task` names the task's own words. A list of label words makes one prompt for each, called <name>.<set>, or <name>.<place in the
list> for a mapping. `synonyms: {good: [好, 不错]}` gives further words of labels, `chat` and `system` make a conversation: as in
a task's file.

Each prompt is judged on unlabeled rows. Predictions are those of its own scores, matched to the prior. `agreement` is the share of
rows on which they are the consensus: the ensemble of all other prompts. `confidence` is the mean probability of the best label, and
`margin` its mean lead, both after the scores were standardised as the ensemble does it and matched to the prior, so that prompts
of different criteria compare. The score is agreement x confidence (only confidence where there is one prompt): a guess, as good
as most of the prompts are. Two things say how biased the raw likelihood is: `mismatch`, the KL divergence (nats) of the mean raw
posterior from the uniform one, and the share of the label that is predicted most. They are no part of the score: matching mends
both. Where rows bring their own candidates there are no classes to match: scores stand as they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from adapt.core.errors import ConfigError
from adapt.core.registry import suggest
from adapt.core.scorer import FloatArray
from adapt.text.contract import TextTokenizer
from pseudo_label.criteria.contract import get_criterion
from pseudo_label.decision import Method, fit_decision, margins, softmax
from pseudo_label.prompts import parse_template, text_before
from pseudo_label.task_checks import chat_problems
from pseudo_label.task_yaml import read_yaml
from pseudo_label.tasks import PromptConfig, TaskConfig, TaskRow
from pseudo_label.zero_shot import PromptKeys

SCORE_FORMULA = "agreement x confidence"
_TASK_WORDS = "task"
_ENTRY_KEYS = ["name", *(field.name for field in fields(PromptConfig))]
_UNWRITTEN = (("criterion", "sum"), ("chat", False))
_REACH_CHARACTERS = 64  # of what stands before a label: farther away nothing changes its tokens


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What unlabeled rows say of a prompt; absent: `agreement` of a single prompt, the raw bias where rows bring candidates."""

    prompt: str
    criterion: str
    score: float
    agreement: float | None
    confidence: float
    margin: float
    mismatch: float | None
    top_share: float | None
    top_label: str | None


def load_prompts(path: Path, task: TaskConfig) -> dict[str, PromptConfig]:
    """Read a file of prompts for a task, by name, label words crossed with templates.

    Raises:
        ConfigError: there is no such file, or an entry is malformed; the message names file and entry.
    """
    entries = _read_entries(path)
    sets: dict[str, dict[str, str] | None] = {_TASK_WORDS: None}
    for where, entry in entries:
        if "template" not in entry:
            if "criterion" in entry or not isinstance(entry.get("label_words"), dict):
                raise ConfigError(f"{where}: has no template; only a named set {{name, label_words: {{label: word}}}} goes without")
            if entry["name"] in sets:
                raise ConfigError(f"{where}: there is a set of label words of this name already; rename one of them")
            sets[entry["name"]] = _words(entry["label_words"], task, where)
    prompts: dict[str, PromptConfig] = {}
    for where, entry in entries:
        for name, prompt in _crossed(entry, sets, task, where) if "template" in entry else []:
            same = next((other for other, known in prompts.items() if known == prompt), None)
            if same is not None:
                raise ConfigError(f"{where}: '{name}' is the same prompt as '{same}'; leave one of them out")
            if name in prompts:
                raise ConfigError(f"{where}: there is a prompt '{name}' already; rename one of them")
            prompts[name] = prompt
    if not prompts:
        raise ConfigError(f"{path}: has no prompts; give entries with a name and a template")
    return prompts


def alone(task: TaskConfig, name: str) -> TaskConfig:
    """Return a task with one of its prompts only, which is its reference."""
    return replace(task, prompts={name: task.prompts[name]}, reference=name, ensemble=None)


def judge(keys: Sequence[PromptKeys], task: TaskConfig) -> list[Judgement]:
    """Judge each prompt by its keys of the same unlabeled rows (at least one), in the order given."""
    own = [own_scores(k, [k], task).argmax(axis=1) for k in keys]
    found = []
    for index, k in enumerate(keys):
        standard_NC = ensemble_scores([k], [k], task)
        others = [other for other in keys if other is not k]
        agreement = None
        if others:
            agreement = float(np.mean(ensemble_scores(others, others, task).argmax(axis=1) == own[index]))
        confidence = float(softmax(standard_NC).max(axis=1).mean())
        mismatch, top_share, top_label = _raw_bias(k.labels_NC, task)
        found.append(
            Judgement(
                prompt=k.prompt,
                criterion=k.criterion,
                score=confidence * (1.0 if agreement is None else agreement),
                agreement=agreement,
                confidence=confidence,
                margin=float(margins(standard_NC).mean()),
                mismatch=mismatch,
                top_share=top_share,
                top_label=top_label,
            )
        )
    return found


def own_scores(keys: PromptKeys, fitted_on: Sequence[PromptKeys], task: TaskConfig) -> FloatArray:
    """Return one prompt's scores matched to the prior of the rows it is fitted on."""
    return fit_decision(Method.PRIOR, fitted_on, alone(task, keys.prompt)).scores([keys], task)


def ensemble_scores(keys: Sequence[PromptKeys], fitted_on: Sequence[PromptKeys], task: TaskConfig) -> FloatArray:
    """Return the scores of prompts together: standardised, averaged and matched to the prior of the rows they are fitted on."""
    return fit_decision(Method.ENSEMBLE, fitted_on, task).scores(keys, task)


def boundary_merges(task: TaskConfig, name: str, tokenizer: TextTokenizer, rows: Sequence[TaskRow]) -> tuple[list[str], int]:
    """Return the label words that would get other tokens if encoded together with what stands before them in some row, and how
    many words there are.

    Where parts are encoded on their own, such a word is scored with tokens that the model hardly ever saw at this place. Where a
    prompt is one text, every word has the tokens of its place.
    """
    shared = [*(task.prompts[name].label_words or task.label_words).values(), *(word for _, word in task.synonyms_of(name))]
    merged: dict[str, bool] = {}
    is_joined = tokenizer.whole is None and not task.prompts[name].chat
    for before, words in {(text_before(task, name, row)[-_REACH_CHARACTERS:], row.candidates or tuple(shared)) for row in rows}:
        tokens = tokenizer.encode(before) if before else []
        for word in words:
            merges = is_joined and bool(before) and tokenizer.encode(before + word) != tokens + tokenizer.encode(word)
            merged[word] = merged.get(word, False) or merges
    return sorted(word for word, merges in merged.items() if merges), len(merged)


def prompts_yaml(task: TaskConfig, names: Sequence[str], comment: str) -> str:
    """Return prompts as a piece of a task file, with the ensemble that they make."""
    plain = {
        "prompts": {
            name: {k: v for k, v in vars(task.prompts[name]).items() if v is not None and (k, v) not in _UNWRITTEN}
            for name in names
        },
        "ensemble": list(names),
    }
    return f"# {comment}\n" + yaml.safe_dump(plain, allow_unicode=True, sort_keys=False, width=1 << 20)


def _raw_bias(keys_NC: FloatArray, task: TaskConfig) -> tuple[float | None, float | None, str | None]:
    if task.candidates is not None:
        return None, None, None  # a place in a row's own list is no class
    mean_C = np.maximum(softmax(keys_NC).mean(axis=0), 1e-300)
    counts = np.bincount(keys_NC.argmax(axis=1), minlength=len(mean_C))
    top = int(counts.argmax())
    mismatch = float((mean_C * np.log(mean_C * len(mean_C))).sum())
    return max(mismatch, 0.0), float(counts[top] / len(keys_NC)), task.labels[top]


def _read_entries(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Return (where it stands, entry) for every entry; each has a name and known keys only."""
    content = read_yaml(path)
    if not isinstance(content, list):
        raise ConfigError(f"{path}: expected a list of entries ('- {{name: ..., template: ...}}')")
    entries = []
    for number, entry in enumerate(content, start=1):
        where = f"{path}, entry {number}"
        if not isinstance(entry, dict):
            raise ConfigError(f"{where}: expected a mapping with name and template, found {entry!r}")
        name = entry.get("name")
        if not isinstance(name, str) or not re.fullmatch(r"[\w-]+", name):
            raise ConfigError(f"{where}: name: {name!r} is no name; give letters, digits, _ and -")
        where += f" ('{name}')"
        for key in entry:
            if key not in _ENTRY_KEYS:
                raise ConfigError(
                    f"{where}: unknown key '{key}'{suggest(str(key), _ENTRY_KEYS)}; there are: {', '.join(_ENTRY_KEYS)}"
                )
        entries.append((where, entry))
    return entries


def _crossed(
    entry: Mapping[str, Any], sets: Mapping[str, dict[str, str] | None], task: TaskConfig, where: str
) -> list[tuple[str, PromptConfig]]:
    """Return an entry's prompts: one, or one for each of its alternatives of label words."""
    name, wanted = entry["name"], entry.get("label_words", _TASK_WORDS)
    alternatives = wanted if isinstance(wanted, list) else [wanted]
    if not alternatives:
        raise ConfigError(f"{where}: label_words: an empty list; leave it out for the task's own words")
    found = []
    for place, alternative in enumerate(alternatives, start=1):
        words = _words_of(alternative, sets, task, where)
        suffix = "" if not isinstance(wanted, list) else f".{alternative if isinstance(alternative, str) else place}"
        template, criterion = entry["template"], entry.get("criterion", "sum")
        if not isinstance(template, str) or not isinstance(criterion, str):
            raise ConfigError(f"{where}: template and criterion must be text, found {template!r} and {criterion!r}")
        is_chat, system = entry.get("chat", False), entry.get("system")
        if not isinstance(is_chat, bool) or not isinstance(system, str | None):
            raise ConfigError(f"{where}: chat must be true or false and system a text, found {is_chat!r} and {system!r}")
        further = _synonyms(entry, task, where)
        prompt = PromptConfig(
            template=template, label_words=words, synonyms=further, criterion=criterion, chat=is_chat, system=system
        )
        if problems := chat_problems(where, prompt):
            raise ConfigError(problems[0])
        try:
            get_criterion(criterion)
            parse_template(replace(task, prompts={name: prompt}), name)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error
        found.append((f"{name}{suffix}", prompt))
    return found


def _words_of(alternative: Any, sets: Mapping[str, dict[str, str] | None], task: TaskConfig, where: str) -> dict[str, str] | None:
    if not isinstance(alternative, str):
        return _words(alternative, task, where)
    if alternative not in sets:
        raise ConfigError(
            f"{where}: label_words: there is no set '{alternative}'{suggest(alternative, list(sets))}; there are: {', '.join(sets)}"
        )
    return sets[alternative]


def _words(content: Any, task: TaskConfig, where: str) -> dict[str, str] | None:
    """Check a mapping of every label to its words (None: they are the task's own); YAML's numbers and truth values are text."""
    if task.candidates is not None:
        raise ConfigError(f"{where}: label_words: rows of task '{task.name}' bring their own candidates; leave it out")
    if not isinstance(content, dict):
        raise ConfigError(f"{where}: label_words: expected a mapping of labels to words, or the name of a set, found {content!r}")
    words = {_as_text(label): _as_text(word) for label, word in content.items()}
    for label in words:
        if label not in task.label_words:
            known = ", ".join(task.labels)
            raise ConfigError(f"{where}: label_words: unknown label '{label}'{suggest(label, task.labels)}; there are: {known}")
    for label in task.labels:
        if not words.get(label):
            raise ConfigError(f"{where}: label_words: label '{label}' has no label word; add it")
    ordered = {label: words[label] for label in task.labels}
    return None if ordered == task.label_words else ordered


def _synonyms(entry: Mapping[str, Any], task: TaskConfig, where: str) -> dict[str, list[str]] | None:
    """Check an entry's further words of labels; the same for each of its alternatives of label words."""
    content = entry.get("synonyms")
    if content is None:
        return None
    if not isinstance(content, dict) or not all(isinstance(words, list) and words for words in content.values()):
        raise ConfigError(f"{where}: synonyms: expected a mapping of labels to lists of words, found {content!r}")
    found = {_as_text(label): [_as_text(word) for word in words] for label, words in content.items()}
    for label in found:
        if label not in task.label_words:
            raise ConfigError(f"{where}: synonyms: unknown label '{label}'{suggest(label, task.labels)}")
    return found


def _as_text(value: Any) -> str:
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)
