"""Tasks as data: where a row's texts, label and id are, how it is prompted, and what its labels are called.

A task file is YAML, checked against `TaskConfig`; rows are JSON lines in the CLUE layout `<root>/<folder>/<split>.json`.
"""

from __future__ import annotations

import difflib
import enum
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from adapt.core.errors import ConfigError, DataError
from adapt.core.registry import suggest
from adapt.core.typed import from_plain
from adapt.text.corpus import parse_json_line, read_lines, text_digest


@dataclass(frozen=True, kw_only=True)
class FieldConfig:
    """A text of a row: a dotted path, lists joined by `join`; `blank` is a mark inside the text that the label fills.

    `drop` is a mark that is taken out of the text.
    """

    path: str
    join: str = "、"
    blank: str | None = None
    drop: str | None = None
    is_optional: bool = False


@dataclass(frozen=True, kw_only=True)
class PromptConfig:
    """A template with {field} and one {label}; text outside braces is the prompt. Label words may differ from the task's.

    `synonyms` are further words of a label: each is scored beside the label's own word, and the label's key is the mean of the keys
    of its words (a verbalizer of several words: Hu et al. 2022, arXiv:2108.02035). Training and answers use the label's own word.
    `criterion` ranks the candidates under this prompt where the stage does not say otherwise.
    """

    template: str
    label_words: dict[str, str] | None = None
    synonyms: dict[str, list[str]] | None = None
    criterion: str = "sum"


class Measure(enum.Enum):
    """What a rule looks at: two texts' common characters, certain words, a pattern, a text's length, its shortest item's length."""

    OVERLAP = "overlap"
    WORDS = "words"
    PATTERN = "pattern"
    LENGTH = "length"
    SHORTEST_ITEM = "shortest_item"


@dataclass(frozen=True, kw_only=True)
class RuleConfig:
    """A rule that labels without a model: something measured in a row's fields, times a weight for each label that it speaks for.

    `overlap`: how many of two fields' distinct characters (words, in languages with spaces) both have, as the mean of their share
    in the shorter text and in both together; with `is_directed`, the share of the second text that the first has too. `words`: 1
    where one of `words` stands in the last field and in no other field of the rule. `pattern`: 1 where the regular expression is
    found in the last field. `length`: characters of the last field; `shortest_item`: those of the shortest item of its list.
    Numbers are centred at their median over the unlabeled rows and divided by their spread there. A negative weight speaks against
    a label.
    """

    measure: Measure
    fields: list[str]
    weights: dict[str, float]
    words: list[str] = field(default_factory=list)
    pattern: str | None = None
    is_directed: bool = False


@dataclass(frozen=True, kw_only=True)
class LexicalConfig:
    """How the labeller without a model works: `uses_words` seeds it with label words and synonyms (else with the rules only).

    `rounds` of self-training follow: classifiers on bags of words learn from the surest `share` of the rows, the same number of
    each label. `unit` is what the bags hold: n-grams of `characters` or of `words` (`auto`: by the texts' script).
    """

    uses_words: bool = True
    rounds: int = 2
    share: float = 0.3
    unit: str = "auto"


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """One task. `label_words` maps each label, as the files spell it, to its words; `candidates` is the path of a row's own.

    `ensemble` names the prompts that label together where nothing else is asked for (none: all of them); a label-first prompt reads
    the text once per label, so it is left out where labels are many and texts long. `label_tree` maps the word of a group to
    its labels: each label in exactly one group. `ensemble_scale` multiplies an ensemble's scores, whose spread is 1, while its
    biases are matched: where labels are in their hundreds, posteriors are so even at 1 that their mean says little of the answers.
    """

    name: str
    folder: str | None = None
    fields: dict[str, FieldConfig]
    label_path: str = "label"
    id_paths: list[str] = field(default_factory=lambda: ["id", "idx"])
    label_words: dict[str, str] = field(default_factory=dict)
    candidates: str | None = None
    prompts: dict[str, PromptConfig]
    reference: str = "reference"
    ensemble: list[str] | None = None
    ensemble_scale: float = 1.0
    shorten: list[str] = field(default_factory=list)
    label_tree: dict[str, list[str]] | None = None
    rules: list[RuleConfig] = field(default_factory=list)
    lexical: LexicalConfig = field(default_factory=LexicalConfig)
    submission_file: str | None = None
    submission_key: str = "label"

    @property
    def labels(self) -> list[str]:
        return list(self.label_words)

    def synonyms_of(self, prompt: str) -> list[tuple[str, str]]:
        """Return (label, word) for the further words of a prompt, in the order of the labels."""
        further = self.prompts[prompt].synonyms or {}
        return [(label, word) for label in self.labels for word in further.get(label, [])]

    def words_of(self, label: str) -> list[str]:
        """Return every word that the task has for a label: its own, those of its prompts, and synonyms; each once."""
        words = [self.label_words[label]]
        for prompt in self.prompts.values():
            words += [(prompt.label_words or self.label_words)[label], *(prompt.synonyms or {}).get(label, [])]
        return list(dict.fromkeys(words))

    def ensemble_names(self) -> list[str]:
        """Return the prompts that label together by default."""
        return list(self.prompts) if self.ensemble is None else list(self.ensemble)


@dataclass(frozen=True, kw_only=True)
class TaskRow:
    """One example: its id as in the file, its texts by field, and its label if it has one."""

    id: Any
    texts: Mapping[str, str]
    label: str | None
    candidates: tuple[str, ...] | None
    line: int


class _UniqueKeys(yaml.SafeLoader):
    """YAML that refuses a key which stands twice in one mapping: the second would silently replace the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.MarkedYAMLError(problem=f"key '{key}' stands twice; merge the two", problem_mark=key_node.start_mark)
            seen.add(key)
        return dict(super().construct_mapping(node, deep=deep))


def load_task(name: str, directories: list[Path]) -> TaskConfig:
    """Read `<name>.yaml` from the first directory that has it.

    Raises:
        ConfigError: there is none, or it breaks the schema; every problem is listed.
    """
    for directory in directories:
        path = directory / f"{name}.yaml"
        if path.is_file():
            try:
                content = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeys)  # noqa: S506 (a safe loader)
            except (yaml.YAMLError, UnicodeDecodeError) as error:
                mark = getattr(error, "problem_mark", None)
                line = f", line {mark.line + 1}" if mark is not None else ""
                problem = getattr(error, "problem", None) or str(error).splitlines()[0]
                raise ConfigError(f"{path}{line}: not valid YAML ({problem})") from error
            if not isinstance(content, dict):
                raise ConfigError(f"{path}: expected a mapping of task settings")
            task: TaskConfig = from_plain(TaskConfig, _words_as_text({"name": name, **content}), str(path))
            problems = _problems(task)
            if problems:
                raise ConfigError(f"{path}: " + "; ".join(problems))
            return task
    known = sorted({p.stem for d in directories if d.is_dir() for p in d.glob("*.yaml")})
    close = difflib.get_close_matches(name, known, n=1)
    hint = f" (did you mean '{close[0]}'?)" if close else ""
    raise ConfigError(f"unknown task '{name}'{hint}; there are: {', '.join(known)}")


def split_path(root: Path, task: TaskConfig, split: str) -> Path:
    """Return where a split of a task is, whether or not it exists."""
    return root / (task.folder or task.name) / f"{split}.json"


def read_split(root: Path, task: TaskConfig, split: str) -> list[TaskRow]:
    """Read every row of `<root>/<folder>/<split>.json`.

    Raises:
        DataError: the file is missing, a line is malformed, a field is missing, or a label has no word.
    """
    path = split_path(root, task, split)
    if not path.is_file():
        raise DataError(f"{path}: no such file; task '{task.name}' needs split '{split}' under data.root={root}")
    return list(read_rows(path, task))


def read_rows(path: Path, task: TaskConfig) -> Iterator[TaskRow]:
    """Yield the rows of one JSON lines file. Raises DataError as `read_split` does."""
    for number, line in read_lines(path):
        if line.strip():
            yield row_from(parse_json_line(line, path, number), task, str(path), number)


def row_from(record: Mapping[str, Any], task: TaskConfig, where: str, line: int) -> TaskRow:
    """Build a row from a mapping.

    Raises:
        DataError: a field is missing, or the label is none of the task's.
    """
    texts = {name: _text_at(record, spec, name, where, line) for name, spec in task.fields.items()}
    candidates = None
    if task.candidates is not None:
        found = _at(record, task.candidates)
        if not isinstance(found, list) or not found:
            raise DataError(f"{where}, line {line}: has no list '{task.candidates}'")
        candidates = tuple(str(item) for item in found)
    label = _label_name(_at(record, task.label_path))
    if label is not None and task.candidates is None and label not in task.label_words:
        mend = f"add it under label_words of task '{task.name}'{_quote_hint(task)}"
        raise DataError(f"{where}, line {line}: label '{label}' has no label word; {mend}")
    row_id = next((found for path in task.id_paths if (found := _at(record, path)) is not None), line - 1)
    return TaskRow(id=row_id, texts=texts, label=label, candidates=candidates, line=line)


def row_digest(row: TaskRow, task: TaskConfig) -> str:
    """Return a digest of a row's texts, to find the same example in another split.

    Optional fields (keywords, say) do not count: they are there in one split and not in the other.
    """
    return text_digest("\x00".join(row.texts[name] for name, spec in task.fields.items() if not spec.is_optional))


def labels_of(row: TaskRow, task: TaskConfig) -> list[str]:
    """Return the names of a row's candidates: the task's labels, or the places in its own list."""
    return task.labels if row.candidates is None else [str(i) for i in range(len(row.candidates))]


def _quote_hint(task: TaskConfig) -> str:
    """Say what YAML makes of a bare yes or no."""
    return " (YAML reads a bare yes or no as true or false: quote it)" if {"true", "false"} & set(task.label_words) else ""


def _text_at(record: Mapping[str, Any], spec: FieldConfig, name: str, where: str, line: int) -> str:
    found = _at(record, spec.path)
    if found is None:
        if spec.is_optional:
            return spec.blank or ""
        raise DataError(
            f"{where}, line {line}: has no '{spec.path}' (field '{name}'); it has: {', '.join(map(str, record)) or 'nothing'}"
        )
    text = spec.join.join(str(item) for item in found) if isinstance(found, list) else str(found)
    text = text.replace(spec.drop, "") if spec.drop else text
    if spec.blank is not None and spec.blank not in text:
        raise DataError(f"{where}, line {line}: '{spec.path}' has no blank {spec.blank}")
    return text


def _at(record: Mapping[str, Any], path: str) -> Any:
    value: Any = record
    for key in path.split("."):
        if not isinstance(value, Mapping) or key not in value:
            return None
        value = value[key]
    return value


def _label_name(value: Any) -> str | None:
    if value is None or isinstance(value, list | dict):
        return None
    return str(value).lower() if isinstance(value, bool) else str(value)


def _words_as_text(content: Any) -> Any:
    """Labels are text, but YAML reads 100: 故事 with a number for a key, and true: 对 with a truth value."""
    if isinstance(content, dict):
        return {_label_name(key): _words_as_text(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_label_name(item) if isinstance(item, int) else item for item in content]
    return content


def _problems(task: TaskConfig) -> list[str]:
    problems = []
    if not task.label_words and task.candidates is None:
        problems.append("label_words: empty, and rows bring no candidates of their own")
    if task.candidates is not None and task.label_tree is not None:
        problems.append("label_tree: rows bring candidates of their own, which no tree can group; leave one of the two out")
    if "label" in task.fields:
        problems.append("fields.label: {label} is the place of the answer in templates; give the field another name")
    if task.reference not in task.prompts:
        problems.append(f"reference: there is no prompt '{task.reference}'")
    if not 0 < task.ensemble_scale < math.inf:
        problems.append(f"ensemble_scale: {task.ensemble_scale:g} is no factor; give a number above 0")
    problems.extend(f"ensemble: there is no prompt '{name}'" for name in task.ensemble_names() if name not in task.prompts)
    for name in task.shorten:
        if name not in task.fields:
            problems.append(f"shorten: there is no field '{name}'")
    for name, prompt in task.prompts.items():
        missing = [label for label in task.label_words if label not in (prompt.label_words or task.label_words)]
        problems.extend(f"prompts.{name}.label_words: label '{label}' has no label word" for label in missing)
        problems.extend(_synonym_problems(task, name, prompt))
    problems.extend(_rule_problems(task))
    if task.label_tree is not None:
        grouped = [label for labels in task.label_tree.values() for label in labels]
        problems.extend(f"label_tree: group '{group}' has no labels" for group, labels in task.label_tree.items() if not labels)
        problems.extend(f"label_tree: label '{label}' is in no group" for label in task.labels if label not in grouped)
        problems.extend(f"label_tree: unknown label '{label}'" for label in grouped if label not in task.label_words)
        problems.extend(
            f"label_tree: label '{label}' is in several groups" for label in {x for x in grouped if grouped.count(x) > 1}
        )
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
            problems.extend(f"{where}.pattern: {problem}" for problem in _pattern_problem(rule.pattern))
        if task.candidates is not None:
            problems.append(f"{where}: rows bring candidates of their own, which no rule can weigh; leave the rules out")
    if task.lexical.unit not in ("auto", "characters", "words"):
        problems.append(f"lexical.unit: '{task.lexical.unit}' is none of auto, characters, words")
    if not task.lexical.uses_words and not task.rules and task.candidates is None:
        problems.append("lexical.uses_words: false, and there are no rules: nothing to label by; add rules, or leave it out")
    if not 0 < task.lexical.share <= 1 or task.lexical.rounds < 0:
        problems.append(f"lexical: share={task.lexical.share:g} is not in (0, 1], or rounds={task.lexical.rounds} is negative")
    return problems


def _pattern_problem(pattern: str | None) -> list[str]:
    try:
        re.compile(pattern or "")
    except re.error as error:
        return [f"not a regular expression ({error})"]
    return [] if pattern else ["missing"]


def _synonym_problems(task: TaskConfig, name: str, prompt: PromptConfig) -> list[str]:
    where = f"prompts.{name}.synonyms"
    if prompt.synonyms and task.candidates is not None:
        return [f"{where}: rows bring candidates of their own; leave the synonyms out"]
    problems = []
    for label, words in (prompt.synonyms or {}).items():
        if label not in task.label_words:
            problems.append(f"{where}: unknown label '{label}'{suggest(label, task.labels)}")
        if not words or not all(words):
            problems.append(f"{where}: label '{label}' has an empty list or word; give words, or leave the label out")
    return problems
