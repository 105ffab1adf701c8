"""What a task's file says of labelling without a model: rules, and how the labeller by words works."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field


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
