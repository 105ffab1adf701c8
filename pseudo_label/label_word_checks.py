"""Label words seen by a tokenizer: words that split, collide, begin like each other, or are read differently inside running text.

Words are looked at as prompts ask them (`Prompt.readings`), and compared with the tokens of the same text written in one go: where
the two differ, the model is asked about tokens that it hardly ever saw behind that text. That finds words that merge with the text
before them, and words that lack the space which belongs to them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from adapt.core.errors import ConfigError
from adapt.core.spans import LabelForm, Span
from adapt.text.contract import TextTokenizer
from adapt.text.tokenizer_health import Finding, Level, Pieces, is_spaced
from pseudo_label.prompts import Prompt, text_before
from pseudo_label.task_config import TaskConfig, TaskRow

MANY_PIECES = 4
_ROWS = 8  # in which a word is looked at behind a field
_CHARACTERS_BEFORE = 64
_OPENING = "\n\t\"'([{“‘/"  # signs behind which a word has no space
_NAMED = 6  # words that a finding names
_UNEVEN = 3  # pieces by which the longest word may surpass the shortest
_REPLACEMENT = "\ufffd"
_A_SIGN = "let a sign stand before {label} that joins no word (： or ，)"
_NO_SPACE = "let no space stand before {label}"


@dataclass(frozen=True, kw_only=True)
class AskedWord:
    """A word of a label under one prompt with the tokens that are asked for, in each of some rows, and the text before it there."""

    label: str
    word: str
    is_own: bool
    ids: tuple[int, ...]
    before: tuple[str, ...]


def check_label_words(task: TaskConfig, tokenizer: TextTokenizer, rows: Sequence[TaskRow] = ()) -> list[Finding]:
    """Return a tokenizer's findings on a task's label words; none for a task whose rows bring their own candidates.

    `rows` show what stands before a word; without any, fields are taken as empty.
    """
    if task.candidates is not None:
        return []
    found: list[Finding] = []
    for name in task.prompts:
        where = f"task '{task.name}', prompt '{name}'"
        try:
            words = asked_words(task, name, tokenizer, rows)
        except ConfigError as error:
            found.append(
                Finding(level=Level.FAULT, where=where, says=_without(str(error), where), mend="a walk with this prompt is refused")
            )
            continue
        found += _split_findings(where, words, tokenizer)
        found += _beginning_findings(where, words, tokenizer, task.prompts[name].criterion)
        found += _neighbour_findings(where, words, tokenizer)
        found += _sharing_findings(where, Prompt(task, name, tokenizer, context_length=1 << 20).odd_words())
    return _joined(found, task)


def _joined(findings: Sequence[Finding], task: TaskConfig) -> list[Finding]:
    """Say once what several prompts have in common."""
    prompts: dict[tuple[Level, str, str], list[str]] = defaultdict(list)
    for finding in findings:
        prompts[finding.level, finding.says, finding.mend].append(finding.where.removeprefix(f"task '{task.name}', prompt "))
    return [
        Finding(
            level=level,
            where=f"task '{task.name}', {'prompts' if len(names) > 1 else 'prompt'} {', '.join(names)}",
            says=says,
            mend=mend,
        )
        for (level, says, mend), names in prompts.items()
    ]


def asked_words(task: TaskConfig, name: str, tokenizer: TextTokenizer, rows: Sequence[TaskRow]) -> list[AskedWord]:
    """Return the words of a prompt as they are asked.

    Raises:
        ConfigError: two labels have the same tokens, or a word has unknown ones.
    """
    prompt = Prompt(task, name, tokenizer, context_length=1 << 20)  # nothing is cut
    empty = TaskRow(id=0, texts={key: spec.blank or "" for key, spec in task.fields.items()}, label=None, candidates=None, line=1)
    shown = list(rows[:_ROWS]) or [empty]
    befores: tuple[str, ...] = ("",)  # an answer of a chat begins a turn
    if not task.prompts[name].chat:
        befores = tuple(text_before(task, name, row)[-_CHARACTERS_BEFORE:] for row in shown)
    labels = [*task.labels, *(label for label, _ in task.synonyms_of(name))]
    found = []
    for place, (label, word, reading) in enumerate(
        zip(labels, prompt.words(shown[0]), prompt.readings(shown[0], LabelForm.CLM), strict=True)
    ):
        ids = reading.targets_T[reading.kinds_T == int(Span.LABEL)]
        found.append(
            AskedWord(label=label, word=word, is_own=place < len(task.labels), ids=tuple(int(i) for i in ids), before=befores)
        )
    return found


def _split_findings(where: str, words: Sequence[AskedWord], tokenizer: TextTokenizer) -> list[Finding]:
    pieces, found = Pieces(tokenizer), []
    spelt = [word for word in words if any(pieces.is_part(token) for token in word.ids)]
    long = [word for word in words if len(word.ids) > MANY_PIECES and word not in spelt]
    if spelt:
        found.append(
            Finding(
                level=Level.WARNING,
                where=where,
                says=f"{_listed(spelt, tokenizer)}: spelt in parts of characters, of which the model knows little",
                mend="choose words whose characters are in the vocabulary",
            )
        )
    if long:
        found.append(
            Finding(
                level=Level.WARNING,
                where=where,
                says=f"{_listed(long, tokenizer)}: more than {MANY_PIECES} pieces each",
                mend="choose shorter or more common words, or a base for this language",
            )
        )
    own = sorted(len(word.ids) for word in words if word.is_own)
    if own[-1] - own[0] >= _UNEVEN:
        found.append(
            Finding(
                level=Level.NOTE,
                where=where,
                says=f"label words have {own[0]} to {own[-1]} pieces",
                mend="longer words score lower by themselves, which methods other than raw correct",
            )
        )
    return found


def _beginning_findings(where: str, words: Sequence[AskedWord], tokenizer: TextTokenizer, criterion: str) -> list[Finding]:
    """Find words that begin another label's word, and labels whose words share their first piece."""
    found = []
    begun = [
        (short, long)
        for short in words
        for long in words
        if short.label != long.label and len(short.ids) < len(long.ids) and long.ids[: len(short.ids)] == short.ids
    ]
    if begun and criterion == "sum":
        pairs = ", ".join(f"{short.word!r} begins {long.word!r}" for short, long in begun[:_NAMED])
        found.append(
            Finding(
                level=Level.WARNING,
                where=where,
                says=f"{pairs}: the shorter one never scores below the longer",
                mend="choose words that begin differently",
            )
        )
    first: dict[int, list[AskedWord]] = defaultdict(list)
    for word in words:
        if word.is_own:
            first[word.ids[0]].append(word)
    shared = [group for group in first.values() if len(group) > 1]
    if shared:
        groups = "; ".join(", ".join(word.word for word in group[:_NAMED]) for group in shared[:_NAMED])
        found.append(
            Finding(
                level=Level.NOTE,
                where=where,
                says=f"label words share their first piece ({groups})",
                mend="only the pieces behind it tell them apart",
            )
        )
    return found


def _neighbour_findings(where: str, words: Sequence[AskedWord], tokenizer: TextTokenizer) -> list[Finding]:
    """Find words whose tokens in running text are others, and of these the ones that lack their space."""
    spaced, merged = [], []
    reads = ""
    for word in words:
        wrong = [before for before in word.before if _differs(tokenizer, before, word)]
        if _lacks_space(tokenizer, word):
            spaced.append(word)
        elif 2 * len(wrong) > len(word.before):
            merged.append(word)
            reads = reads or _read_as(tokenizer, wrong[0], word)
    found = []
    if spaced:
        found.append(
            Finding(
                level=Level.WARNING,
                where=where,
                says=f"{_listed(spaced, tokenizer)}: asked without the space that stands before a word in running text",
                mend=f"end the template's text without a space and write it into the words ({' ' + spaced[0].word.strip()!r})",
            )
        )
    if merged:
        found.append(
            Finding(
                level=Level.WARNING,
                where=where,
                says=f"{_listed(merged, tokenizer)}: other tokens in running text ({reads})",
                mend=_NO_SPACE if all(before.endswith(" ") for word in merged for before in word.before) else _A_SIGN,
            )
        )
    return found


def _sharing_findings(where: str, odd: Sequence[str]) -> list[Finding]:
    """Find words that are asked as a part of a token, where a prompt is encoded as one text."""
    if not odd:
        return []
    says = f"{', '.join(map(repr, odd[:_NAMED]))}: share a token with the text beside them"
    return [Finding(level=Level.WARNING, where=where, says=says, mend="put a space or a sign between")]


def _differs(tokenizer: TextTokenizer, before: str, word: AskedWord) -> bool:
    if not before:
        return False
    written = tokenizer.encode(before + word.word)
    return tuple(written[-len(word.ids) :]) != word.ids


def _lacks_space(tokenizer: TextTokenizer, word: AskedWord) -> bool:
    """Return whether a word of a script with spaces follows text, and is asked for with other tokens than after a space."""
    bare = word.word.strip()
    if not bare[:1].isalpha() or not is_spaced(Counter(bare)):
        return False
    if not all(before and is_spaced(Counter(before)) and before[-1] not in _OPENING for before in word.before):
        return False
    with_space = tuple(tokenizer.encode(" " + bare))
    return word.ids != with_space and tuple(tokenizer.encode(bare)) == word.ids


def _read_as(tokenizer: TextTokenizer, before: str, word: AskedWord) -> str:
    """Return the pieces in which the end of a text differs from the asked ones: `是满|意, asked as 满意`."""
    apart, written = tokenizer.encode(before), tokenizer.encode(before + word.word)
    start = next((i for i, (a, b) in enumerate(zip(apart, written, strict=False)) if a != b), min(len(apart), len(written)))
    return f"{_pieces(tokenizer, written[start:])}, asked as {_pieces(tokenizer, word.ids)}"


def pieces_of(tokenizer: TextTokenizer, ids: Sequence[int]) -> list[str]:
    """Return each token as text, or as the vocabulary writes it where it is no text by itself."""
    read = [tokenizer.decode([token]) for token in ids]
    return [
        tokenizer.pieces([token])[0] if not text or _REPLACEMENT in text else text for token, text in zip(ids, read, strict=True)
    ]


def _pieces(tokenizer: TextTokenizer, ids: Sequence[int]) -> str:
    return "|".join(pieces_of(tokenizer, ids))


def _listed(words: Sequence[AskedWord], tokenizer: TextTokenizer) -> str:
    named = list(dict.fromkeys(f"'{word.word}' ({_pieces(tokenizer, word.ids)})" for word in words))
    rest = len(named) - _NAMED
    return ", ".join(named[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")


def _without(message: str, where: str) -> str:
    return message.removeprefix(f"{where}: ").removeprefix(f"{where.partition(',')[0]}: ")
