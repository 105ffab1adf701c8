"""What does not fit together in a task, found when it is loaded: prompts and fields, labels and words, names of files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from adapt.core.errors import ConfigError
from adapt.core.registry import suggest
from adapt.text.rows.encodings import check_encoding
from pseudo_label.lexical_config import Measure
from pseudo_label.patterns import problem_of
from pseudo_label.splits import refuse_no_name
from pseudo_label.task_config import PromptConfig, TaskConfig
from pseudo_label.templates import LABEL_SLOT, no_field, template_pieces

_ROUNDED = 0.005  # by how much shares may miss 1


def problems_of(task: TaskConfig) -> list[str]:
    """Return all that does not fit together in a task, each with its dotted path."""
    problems = _name_problems(task)
    if not task.label_words and task.candidates is None:
        problems.append("label_words: empty, and rows bring no candidates of their own")
    if "" in task.label_words:
        problems.append("label_words: a label has no name; rows with an empty label have none")
    if task.candidates is not None and task.label_tree is not None:
        problems.append("label_tree: rows bring candidates of their own, which no tree can group; leave one of the two out")
    if LABEL_SLOT in task.fields:
        problems.append("fields.label: {label} is the place of the answer in templates; give the field another name")
    problems.extend(_field_problems(task))
    if task.reference not in task.prompts:
        problems.append(f"reference: there is no prompt '{task.reference}'")
    if not 0 < task.ensemble_scale < math.inf:
        problems.append(f"ensemble_scale: {task.ensemble_scale:g} is no factor; give a number above 0")
    problems.extend(f"ensemble: there is no prompt '{name}'" for name in task.ensemble_names() if name not in task.prompts)
    problems.extend(f"shorten: there is no field '{name}'" for name in task.shorten if name not in task.fields)
    problems.extend(_word_problems("label_words", task.label_words, {}))
    for name, prompt in task.prompts.items():
        problems.extend(_prompt_problems(task, name, prompt))
    problems.extend(_rule_problems(task))
    problems.extend(_prior_problems(task))
    if task.label_tree is not None:
        grouped = [label for labels in task.label_tree.values() for label in labels]
        problems.extend(f"label_tree: group '{group}' has no labels" for group, labels in task.label_tree.items() if not labels)
        problems.extend(f"label_tree: label '{label}' is in no group" for label in task.labels if label not in grouped)
        problems.extend(f"label_tree: unknown label '{label}'" for label in grouped if label not in task.label_words)
        problems.extend(
            f"label_tree: label '{label}' is in several groups" for label in {x for x in grouped if grouped.count(x) > 1}
        )
    return problems


def unread_fields(task: TaskConfig) -> list[str]:
    """Return the fields that no prompt reads; rules and the lexical labeller may."""
    read = {field for prompt in task.prompts.values() for _, field in template_pieces(prompt.template, task.fields)}
    return [name for name in task.fields if name not in read]


def _field_problems(task: TaskConfig) -> list[str]:
    problems = []
    for name, spec in task.fields.items():
        if spec.blank == "":
            problems.append(f"fields.{name}.blank: is empty; give the mark that the label fills, or leave it out")
        if spec.path == task.label_path:
            problems.append(f"label_path: '{task.label_path}' is the text of field '{name}'; give the column of the labels")
    return problems


def _prior_problems(task: TaskConfig) -> list[str]:
    if task.prior is None:
        return []
    if task.candidates is not None:
        return ["prior: rows bring candidates of their own, which have no shares; leave it out"]
    problems = [f"prior: label '{label}' has no share" for label in task.labels if label not in task.prior]
    problems += [f"prior: unknown label '{label}'{suggest(label, task.labels)}" for label in task.prior if label not in task.labels]
    problems += [f"prior.{label}: {share:g} is no share above 0" for label, share in task.prior.items() if not 0 < share <= 1]
    total = sum(task.prior.values())
    if not problems and abs(total - 1) > _ROUNDED:
        problems.append(f"prior: the shares sum to {total:g}; they must sum to 1")
    return problems


def _name_problems(task: TaskConfig) -> list[str]:
    """Return what is wrong with names of files and directories, and of the encoding."""
    problems = []
    folder = Path(task.folder or task.name)
    if task.folder is not None and (folder.is_absolute() or ".." in folder.parts or not task.folder.isprintable()):
        problems.append(f"folder: {task.folder!r} leads out of data.root; give a name below it")
    try:
        refuse_no_name("name", task.name)
        refuse_no_name("submission_file", task.submission_file or task.name)
        check_encoding(task.encoding, "encoding")
    except ConfigError as error:
        problems.append(str(error))
    return problems


def _prompt_problems(task: TaskConfig, name: str, prompt: PromptConfig) -> list[str]:
    where = f"prompts.{name}"
    problems = []
    try:
        slots = [field for _, field in template_pieces(prompt.template, task.fields) if field is not None]
        blanks = [field for field in slots if field != LABEL_SLOT and task.fields[field].blank is not None]
        if len(blanks) + slots.count(LABEL_SLOT) != 1:
            problems.append(f"{where}.template: needs exactly one place for the label, has {len(blanks) + slots.count(LABEL_SLOT)}")
        if not set(slots) - {LABEL_SLOT}:
            problems.append(f"{where}.template: {no_field(task.fields)}")
    except ConfigError as error:
        problems.append(f"{where}.template: {error}")
    problems.extend(chat_problems(where, prompt))
    words = prompt.label_words or task.label_words
    problems.extend(f"{where}.label_words: label '{label}' has no label word" for label in task.labels if label not in words)
    problems.extend(
        f"{where}.label_words: unknown label '{label}'{suggest(label, task.labels)}"
        for label in words
        if label not in task.label_words
    )
    if prompt.synonyms and task.candidates is not None:
        return [*problems, f"{where}.synonyms: rows bring candidates of their own; leave the synonyms out"]
    for label, more in (prompt.synonyms or {}).items():
        if label not in task.label_words:
            problems.append(f"{where}.synonyms: unknown label '{label}'{suggest(label, task.labels)}")
        if not more or not all(word.strip() for word in more):
            problems.append(f"{where}.synonyms: label '{label}' has an empty list or word; give words, or leave the label out")
    if prompt.label_words is not None or prompt.synonyms:
        place = f"{where}.synonyms" if prompt.label_words is None else f"{where}.label_words"
        known = set() if prompt.label_words is not None else set(_word_problems("", words, {}))
        problems += [f"{place}{x}" for x in _word_problems("", words, prompt.synonyms or {}) if x not in known]
    return problems


def chat_problems(where: str, prompt: PromptConfig) -> list[str]:
    """Return what is wrong with a prompt's turns: text of the prompt behind the answer, or a system's text outside a chat."""
    if prompt.chat and not prompt.template.rstrip().endswith(f"{{{LABEL_SLOT}}}"):
        return [f"{where}.chat: the label is the answer to all other text; let the template end with {{label}}"]
    if prompt.system is not None and not prompt.chat:
        return [f"{where}.system: is the first turn of a chat, and this prompt is none; add chat: true, or leave it out"]
    if prompt.system is not None and not prompt.system.strip():
        return [f"{where}.system: is empty; give a text, or leave it out"]
    return []


def _word_problems(where: str, words: Mapping[str, str], synonyms: Mapping[str, list[str]]) -> list[str]:
    """Return what is wrong with the words of labels under one prompt: one is empty, or two are the same."""
    problems = [f"{where}: label '{label}' has an empty label word" for label, word in words.items() if not word.strip()]
    said: dict[str, str] = {}
    for label, word in [*words.items(), *((label, word) for label, more in synonyms.items() for word in more)]:
        if word.strip() and word in said:
            problems.append(f"{where}: labels '{said[word]}' and '{label}' have the same word '{word}'; give them different ones")
        said.setdefault(word, label)
    return problems


def _rule_problems(task: TaskConfig) -> list[str]:
    problems: list[str] = []
    for number, rule in enumerate(task.rules):
        where = f"rules[{number}]"
        problems.extend(f"{where}.fields: there is no field '{name}'" for name in rule.fields if name not in task.fields)
        problems.extend(
            f"{where}.weights: unknown label '{x}'{suggest(x, task.labels)}" for x in rule.weights if x not in task.labels
        )
        if not rule.fields or (rule.measure is Measure.OVERLAP and len(rule.fields) != 2):
            problems.append(f"{where}.fields: '{rule.measure.value}' takes {'two fields' if rule.fields else 'at least one field'}")
        if rule.measure is Measure.WORDS and not all([rule.words, *rule.words]):
            problems.append(f"{where}.words: an empty list or word")
        if rule.measure is Measure.PATTERN:
            problem = problem_of(rule.pattern)
            problems.extend([f"{where}.pattern: {problem}"] if problem is not None else [])
        if task.candidates is not None:
            problems.append(f"{where}: rows bring candidates of their own, which no rule can weigh; leave the rules out")
    if task.lexical.unit not in ("auto", "characters", "words"):
        problems.append(f"lexical.unit: '{task.lexical.unit}' is none of auto, characters, words")
    if not task.lexical.uses_words and not task.rules and task.candidates is None:
        problems.append("lexical.uses_words: false, and there are no rules: nothing to label by; add rules, or leave it out")
    if not 0 < task.lexical.share <= 1 or task.lexical.rounds < 0:
        problems.append(f"lexical: share={task.lexical.share:g} is not in (0, 1], or rounds={task.lexical.rounds} is negative")
    return problems
