"""What a task is made of: where a row's texts, label and id are, how it is prompted, and what its labels are called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from adapt.core.typed import ADDED_LATER
from adapt.text.rows.contract import Quotes
from pseudo_label.lexical_config import LexicalConfig, RuleConfig


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

    With `chat` the text before the label is a user's turn, behind one of `system` where that is given, and the label begins the
    assistant's answer, as the base's chat template writes them.
    """

    template: str
    label_words: dict[str, str] | None = None
    synonyms: dict[str, list[str]] | None = None
    criterion: str = "sum"
    chat: bool = field(default=False, metadata=ADDED_LATER)
    system: str | None = field(default=None, metadata=ADDED_LATER)


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """One task. `label_words` maps each label, as the files spell it, to its words; `candidates` is the path of a row's own.

    `label_path` leads to a row's label (`pseudo_label/gold.py` says what counts as one).

    `ensemble` names the prompts that label together where nothing else is asked for (none: all of them); a label-first prompt
    reads the text once per label, so it is left out where labels are many and texts long. `label_tree` maps the word of a
    group to its labels: each label in exactly one group. `ensemble_scale` multiplies an ensemble's scores, whose spread is 1,
    while its biases are matched: where labels are in their hundreds, posteriors are so even at 1 that their mean says little
    of the answers. `rules` and `lexical` say how to label without a model. `prior` is each label's share among the unlabeled
    rows (absent: all alike), which calibration, rules and selection keep to. `encoding` is that of the files of rows
    (absent: recognised), `quotes` what quotes in tables are; `data.encoding` and `data.quotes` say it for all tasks.
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
    prior: dict[str, float] | None = None
    submission_file: str | None = None
    submission_key: str = "label"
    encoding: str | None = None
    quotes: Quotes | None = None

    @property
    def labels(self) -> list[str]:
        return list(self.label_words)

    def shares(self) -> list[float]:
        """Return each label's share among the unlabeled rows, in the order of the labels."""
        if self.prior is None:
            return [1 / max(len(self.label_words), 1)] * len(self.label_words)
        return [self.prior[label] for label in self.labels]

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
    """One example: its id as in the file, its texts by field, and its label if it has one.

    `shortlist` are the places of the only labels of the task that a model is asked about, in ascending order (absent: all).
    """

    id: Any
    texts: Mapping[str, str]
    label: str | None
    candidates: tuple[str, ...] | None
    line: int
    shortlist: tuple[int, ...] | None = None
