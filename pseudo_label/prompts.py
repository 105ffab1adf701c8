"""Prompts: a row and a label to tokens that know their kind (field text: CONTEXT, template text: PROMPT, words: LABEL).

Every part is encoded on its own and the ids are joined, so that a label has the same tokens in training and in scoring,
whatever stands beside it. Only fields named under `shorten` are cut when a text is longer than the context, and all
candidates of a row are cut alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from adapt.core.errors import ConfigError, DataError
from adapt.core.spans import LabelForm, Reading, Span, SpannedText, join_parts, read_bidirectionally, read_with_targets
from adapt.text.contract import TextTokenizer
from pseudo_label.candidates import Candidates
from pseudo_label.criteria.contract import get_criterion
from pseudo_label.tasks import TaskConfig, TaskRow
from pseudo_label.templates import LABEL_SLOT, template_pieces


@dataclass(frozen=True, kw_only=True)
class Part:
    """One piece of a template: literal text, a field, or the label's place."""

    kind: Span
    text: str = ""
    field: str | None = None


@dataclass(frozen=True, kw_only=True)
class _Piece:
    """Tokens of a part in one row; `keeps_end` says which side is cut when it must be shortened."""

    ids: list[int]
    kind: Span
    is_shortenable: bool
    keeps_end: bool = False


class Prompt:
    """One prompt of a task, ready to render rows."""

    def __init__(self, task: TaskConfig, name: str, tokenizer: TextTokenizer, context_length: int) -> None:
        if name not in task.prompts:
            raise ConfigError(f"task '{task.name}' has no prompt '{name}'; it has: {', '.join(task.prompts)}")
        self.name = name
        self.task = task
        self.criterion = task.prompts[name].criterion
        try:
            get_criterion(self.criterion)
        except ConfigError as error:
            raise ConfigError(f"task '{task.name}', prompts.{name}.criterion: {error}") from error
        self.context_length = context_length
        self._tokenizer = tokenizer
        self._parts = parse_template(task, name)
        words = task.prompts[name].label_words or task.label_words
        self._label_ids = {label: self._encode_label(word) for label, word in words.items() if label in task.label_words}
        self._label_words = words
        self._group_ids = {word: self._encode_label(word) for word in (task.label_tree or {})}
        self._synonyms = task.synonyms_of(name)
        self._synonym_ids = [self._encode_label(word) for _, word in self._synonyms]
        self._refuse_equal_labels()

    @property
    def is_label_first(self) -> bool:
        """Whether no field stands before the label."""
        return label_stands_first(self.task, self.name)

    def words(self, row: TaskRow, *, with_groups: bool = False) -> list[str]:
        """Return the words of a row's candidates, in the order of `readings`."""
        if row.candidates is not None:
            return list(row.candidates)
        candidates = Candidates.of(self.task, self.name, with_groups=with_groups)
        own = [self._label_words[label] for label in candidates.labels]
        words = candidates.ordered(own, candidates.groups, candidates.synonyms)
        return [words[place] for place in candidates.places_asked(row)]

    def readings(self, row: TaskRow, form: LabelForm, *, with_groups: bool = False) -> list[Reading]:
        """Render every candidate of a row in the order of `Candidates`; of a row with a shortlist, those it is asked about.

        A masked label before its text, which would see nothing under causal attention, is read bidirectionally.

        Raises:
            DataError: the row does not fit into the context even with its shortenable fields empty.
            ConfigError: a masked label without a mask token.
        """
        own = asked = self._own_candidates(row)
        if row.candidates is None:
            candidates = Candidates.of(self.task, self.name, with_groups=with_groups)
            known = candidates.ordered(own, list(self._group_ids.values()), self._synonym_ids)
            asked = [known[place] for place in candidates.places_asked(row)]
        texts = self._render(row, asked, own)
        if form is LabelForm.MLM and self.is_label_first:
            return [read_bidirectionally(text, self._tokenizer.mask_id) for text in texts]
        return [read_with_targets(text, form, self._tokenizer.mask_id) for text in texts]

    def labelled(self, row: TaskRow, label: str) -> SpannedText:
        """Render a row with one label, cut exactly as it is for scoring."""
        own = self._own_candidates(row)
        place = int(label) if row.candidates is not None else self.task.labels.index(label)
        return self._render(row, [own[place]], own)[0]

    def length(self, row: TaskRow) -> int:
        """Return how many tokens a row has before it is cut, with its longest candidate."""
        return 1 + self._longest(self._own_candidates(row)) + sum(len(piece.ids) for piece in self._pieces(row))

    def null_row(self, row: TaskRow) -> TaskRow:
        """Return the row with every field empty (a blank stays): the null context of pointwise mutual information."""
        texts = {name: self.task.fields[name].blank or "" for name in row.texts}
        return TaskRow(id=row.id, texts=texts, label=None, candidates=row.candidates, line=row.line)

    def domain_row(self, row: TaskRow, texts: Mapping[str, str]) -> TaskRow:
        """Return a row's candidates in another text of the domain, of which only what stands before a blank is kept.

        Half a context is kept at most, so that it is the same whatever candidates are read after it.
        """
        cut = {}
        for name in row.texts:
            blank = self.task.fields[name].blank
            cut[name] = texts[name] if blank is None else texts[name].split(blank)[0][-self.context_length // 2 :] + blank
        return TaskRow(id=row.id, texts=cut, label=None, candidates=row.candidates, line=row.line)

    def _own_candidates(self, row: TaskRow) -> list[list[int]]:
        """Return the tokens of a row's own candidates, or of all labels in the task's order."""
        if row.candidates is not None:
            return [self._encode_label(word) for word in row.candidates]
        return [self._label_ids[label] for label in self.task.labels]

    def _render(self, row: TaskRow, candidates: Sequence[list[int]], own: Sequence[list[int]]) -> list[SpannedText]:
        """Render a row with each of some candidates; `own` are all that its length is reckoned with."""
        pieces = self._fit(self._pieces(row), self.context_length - 1 - self._longest(own), row)
        bos = ([self._tokenizer.bos_id], Span.CONTEXT)
        texts = []
        for ids in candidates:
            parts = [(ids, Span.LABEL) if piece.kind is Span.LABEL else (piece.ids, piece.kind) for piece in pieces]
            texts.append(join_parts([bos, *parts]))
        return texts

    def _longest(self, own: Sequence[list[int]]) -> int:
        """Return the length of the longest candidate.

        Groups and further words count where they are not scored too, so that a row is cut alike for scoring and for training.
        """
        return max(len(ids) for ids in [*own, *self._group_ids.values(), *self._synonym_ids])

    def _pieces(self, row: TaskRow) -> list[_Piece]:
        pieces = []
        for part in self._parts:
            if part.kind is Span.LABEL:
                pieces.append(_Piece(ids=[], kind=Span.LABEL, is_shortenable=False))
            elif part.field is None:
                pieces.append(_Piece(ids=self._encode(part.text), kind=Span.PROMPT, is_shortenable=False))
            else:
                pieces.extend(self._field_pieces(part.field, row.texts[part.field]))
        return pieces

    def _field_pieces(self, name: str, text: str) -> list[_Piece]:
        can_cut = name in self.task.shorten
        blank = self.task.fields[name].blank
        if blank is None:
            return [_Piece(ids=self._encode(text), kind=Span.CONTEXT, is_shortenable=can_cut)]
        before, after = text.split(blank, 1)
        return [
            _Piece(ids=self._encode(before), kind=Span.CONTEXT, is_shortenable=can_cut, keeps_end=True),
            _Piece(ids=[], kind=Span.LABEL, is_shortenable=False),
            _Piece(ids=self._encode(after), kind=Span.CONTEXT, is_shortenable=can_cut),
        ]

    def _fit(self, pieces: list[_Piece], room: int, row: TaskRow) -> list[_Piece]:
        excess = sum(len(piece.ids) for piece in pieces) - room
        if excess <= 0:
            return pieces
        lengths = {i: len(piece.ids) for i, piece in enumerate(pieces) if piece.is_shortenable}
        if sum(lengths.values()) < excess:
            raise DataError(
                f"task '{self.task.name}', line {row.line}: does not fit into {self.context_length} tokens; only the fields "
                f"under shorten ({', '.join(self.task.shorten) or 'none'}) may be cut"
            )
        lengths = _shorten(lengths, sum(lengths.values()) - excess)
        fitted = []
        for i, piece in enumerate(pieces):
            if i in lengths:
                start = len(piece.ids) - lengths[i] if piece.keeps_end else 0
                ids = piece.ids[start : start + lengths[i]]
                piece = _Piece(ids=ids, kind=piece.kind, is_shortenable=True, keeps_end=piece.keeps_end)
            fitted.append(piece)
        return fitted

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text) if text else []

    def _encode_label(self, word: str) -> list[int]:
        ids = self._encode(word)
        if not ids:
            raise ConfigError(f"task '{self.task.name}', prompt '{self.name}': an empty label word")
        if self._tokenizer.unk_id in ids:
            raise ConfigError(f"task '{self.task.name}': label word '{word}' has tokens unknown to the tokenizer")
        return ids

    def _refuse_equal_labels(self) -> None:
        seen: dict[tuple[int, ...], str] = {}
        further = [(label, ids) for (label, _), ids in zip(self._synonyms, self._synonym_ids, strict=True)]
        for label, ids in [*self._label_ids.items(), *further]:
            if tuple(ids) in seen:
                raise ConfigError(
                    f"task '{self.task.name}', prompt '{self.name}': labels '{seen[tuple(ids)]}' and '{label}' have the same "
                    "tokens; give them different label words and synonyms"
                )
            seen[tuple(ids)] = label


def label_stands_first(task: TaskConfig, name: str) -> bool:
    """Return whether no field stands before a prompt's label."""
    parts = parse_template(task, name)
    label = next((i for i, part in enumerate(parts) if part.kind is Span.LABEL), None)
    if label is None:
        return False  # a blank inside a field
    return all(part.field is None for part in parts[:label])


def parse_template(task: TaskConfig, name: str) -> list[Part]:
    """Split a template into parts.

    Raises:
        ConfigError: an unknown field, no place for the label, or more than one.
    """
    where = f"task '{task.name}', prompts.{name}.template"
    parts: list[Part] = []
    slots = 0
    try:
        for literal, field_name in template_pieces(task.prompts[name].template, task.fields):
            if literal:
                parts.append(Part(kind=Span.PROMPT, text=literal))
            if field_name == LABEL_SLOT:
                parts.append(Part(kind=Span.LABEL))
                slots += 1
            elif field_name is not None:
                parts.append(Part(kind=Span.CONTEXT, field=field_name))
                slots += task.fields[field_name].blank is not None
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    if slots != 1:
        raise ConfigError(f"{where}: needs exactly one place for the label, has {slots}")
    return parts


def _shorten(lengths: dict[int, int], room: int) -> dict[int, int]:
    """Cut the longest first, so that short parts stay whole: the water-filling of `room` tokens."""
    left, result = room, {}
    for count, (index, length) in enumerate(sorted(lengths.items(), key=lambda item: item[1])):
        share = left // (len(lengths) - count)
        result[index] = min(length, share)
        left -= result[index]
    return result
