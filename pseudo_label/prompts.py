"""Prompts: a row and a label to tokens that know their kind (field text: CONTEXT, template text: PROMPT, words: LABEL).

The tokenizer decides how. Either a row and a label are filled in and encoded as one text (`whole_text.py`), as Hugging Face bases
were trained. Or every part is encoded on its own and the ids are joined, so that a label has the same tokens whatever stands beside
it. A prompt with `chat` is one text in the turns of a conversation (`chat_turns.py`). Training and scoring render alike. Only
fields named under `shorten` are cut when a text is longer than the context, and all candidates of a row are cut alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from adapt.core.errors import ConfigError, DataError
from adapt.core.spans import LabelForm, Reading, Span, SpannedText, join_parts, read_bidirectionally, read_with_targets
from adapt.text.contract import ChatForm, TextTokenizer, WholeEncoder
from pseudo_label.candidates import Candidates
from pseudo_label.chat_turns import in_turns
from pseudo_label.criteria.contract import get_criterion
from pseudo_label.tasks import TaskConfig, TaskRow
from pseudo_label.templates import LABEL_SLOT, no_field, template_pieces
from pseudo_label.whole_text import TextPart, fitted, label_shares_tokens, longest_of, shorten, spanned_texts


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
        self._chat = _chat_form(task, name, tokenizer)
        self._whole = tokenizer.whole if self._chat is None else self._chat.encode
        self._n_starts = int(self._chat is None)  # a conversation starts by itself
        self._parts = parse_template(task, name)
        words = task.prompts[name].label_words or task.label_words
        self._synonyms = task.synonyms_of(name)
        self._refuse_marks([*words.values(), *(task.label_tree or {}), *(word for _, word in self._synonyms)])
        self._label_ids = {label: self._encode_label(word) for label, word in words.items() if label in task.label_words}
        self._label_words = words
        self._group_ids = {word: self._encode_label(word) for word in (task.label_tree or {})}
        self._synonym_ids = [self._encode_label(word) for _, word in self._synonyms]
        self._word_ids = {self._label_words[label]: ids for label, ids in self._label_ids.items()} | self._group_ids
        self._word_ids |= {word: ids for (_, word), ids in zip(self._synonyms, self._synonym_ids, strict=True)}
        self._refuse_equal_labels()

    @property
    def is_label_first(self) -> bool:
        """Whether no field stands before the label."""
        return label_stands_first(self.task, self.name)

    @property
    def frame_bytes(self) -> int:
        """How many bytes of text a base's chat template puts around a row's: no more tokens than these."""
        return 0 if self._chat is None else len(f"{self._chat.before}{self._chat.after}{self._chat.gap}".encode())

    @property
    def opening(self) -> tuple[Part, ...] | None:
        """Return the parts up to the first field; None where the label comes before it.

        Prompts of one opening begin alike in every row.
        """
        if self.is_label_first:
            return None
        first = next(place for place, part in enumerate(self._parts) if part.field is not None)
        frame = () if self._chat is None else (Part(kind=Span.PROMPT, text=self._chat.coded_before),)
        return (*frame, *self._parts[: first + 1])

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
        texts = self._render(row, self.words(row, with_groups=with_groups))
        if form is LabelForm.MLM and self.is_label_first:
            return [read_bidirectionally(text, self._tokenizer.mask_id) for text in texts]
        return [read_with_targets(text, form, self._tokenizer.mask_id) for text in texts]

    def labelled(self, row: TaskRow, label: str) -> SpannedText:
        """Render a row with one label, cut exactly as it is for scoring."""
        place = int(label) if row.candidates is not None else self.task.labels.index(label)
        return self._render(row, [self._own_words(row)[place]])[0]

    def length(self, row: TaskRow) -> int:
        """Return how many tokens a row has before it is cut, with its longest candidate."""
        if self._whole is not None:
            return self._n_starts + longest_of(self._text_parts(row), self._all_words(row), self._whole)
        return 1 + self._longest(row) + sum(len(piece.ids) for piece in self._pieces(row))

    def kept(self, row: TaskRow) -> bytes:
        """Return the tokens of a row as its first candidate is scored, cut where it is too long."""
        return self._render(row, self.words(row)[:1])[0].ids_T.tobytes()

    def fitted_parts(self, row: TaskRow) -> tuple[list[TextPart], bool]:
        """Return a row's parts as texts, cut as they are for scoring, and whether they have the same tokens there.

        They have not where parts are encoded on their own and one is cut inside a character. Raises DataError as `readings` does.
        """
        if self._whole is not None:
            return self._fitted(row, self._whole), True
        parts = self._text_parts(row)
        pieces = self._pieces(row)
        found, is_same = [], True
        for part, whole, kept in zip(
            parts, pieces, self._fit(pieces, self.context_length - 1 - self._longest(row), row), strict=True
        ):
            if kept.ids != whole.ids:
                part = replace(part, text=self._tokenizer.decode(kept.ids).strip("\ufffd"))
                is_same = is_same and self._encode(part.text) == kept.ids
            found.append(part)
        return found, is_same

    def odd_words(self) -> list[str]:
        """Return the label words that share a token with other text than spaces, fields being a letter.

        The list is empty where parts are encoded on their own, or candidates are a row's own.
        """
        whole = self._whole
        if whole is None or self.task.candidates is not None:
            return []
        texts = {name: spec.blank or "a" for name, spec in self.task.fields.items()}
        row = TaskRow(id=None, texts=texts, label=None, candidates=None, line=0)
        return [word for word in self.words(row) if label_shares_tokens(self._text_parts(row), word, whole)]

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

    def _own_words(self, row: TaskRow) -> list[str]:
        """Return the words of a row's own candidates, or of all labels in the task's order."""
        return list(row.candidates) if row.candidates is not None else [self._label_words[label] for label in self.task.labels]

    def _all_words(self, row: TaskRow) -> list[str]:
        """Return every word that a row's length is reckoned with.

        Groups and further words count where they are not scored too, so that a row is cut alike for scoring and for training.
        """
        return [*self._own_words(row), *self._group_ids, *(word for _, word in self._synonyms)]

    def _render(self, row: TaskRow, words: Sequence[str]) -> list[SpannedText]:
        """Render a row with each of some words."""
        candidates = [self._ids_of(word) for word in words]
        if self._whole is not None:
            bos_id = self._tokenizer.bos_id if self._chat is None else None
            return spanned_texts(self._fitted(row, self._whole), words, self._whole, bos_id)
        pieces = self._fit(self._pieces(row), self.context_length - 1 - self._longest(row), row)
        bos = ([self._tokenizer.bos_id], Span.CONTEXT)
        texts = []
        for ids in candidates:
            parts_ids = [(ids, Span.LABEL) if piece.kind is Span.LABEL else (piece.ids, piece.kind) for piece in pieces]
            texts.append(join_parts([bos, *parts_ids]))
        return texts

    def _fitted(self, row: TaskRow, whole: WholeEncoder) -> list[TextPart]:
        """Return a row's parts as texts, cut so that every word fits."""
        parts = fitted(self._text_parts(row), self._all_words(row), whole, self.context_length - self._n_starts)
        if parts is None:
            raise self._does_not_fit(row)
        return parts

    def _ids_of(self, word: str) -> list[int]:
        """Return a word's tokens on its own."""
        if word not in self._word_ids:
            return self._encode_label(word)
        return self._word_ids[word]

    def _longest(self, row: TaskRow) -> int:
        """Return the length of the longest candidate."""
        return max(len(self._ids_of(word)) for word in self._all_words(row))

    def _text_parts(self, row: TaskRow) -> list[TextPart]:
        parts = []
        for part in self._parts:
            if part.kind is Span.LABEL:
                parts.append(TextPart(kind=Span.LABEL))
            elif part.field is None:
                parts.append(TextPart(text=part.text, kind=Span.PROMPT))
            else:
                parts.extend(self._field_parts(part.field, row.texts[part.field]))
        return parts if self._chat is None else in_turns(parts, self._chat)

    def _field_parts(self, name: str, text: str) -> list[TextPart]:
        can_cut = name in self.task.shorten
        blank = self.task.fields[name].blank
        if blank is None:
            return [TextPart(text=text, kind=Span.CONTEXT, is_shortenable=can_cut)]
        before, after = text.split(blank, 1)
        return [
            TextPart(text=before, kind=Span.CONTEXT, is_shortenable=can_cut, keeps_end=True),
            TextPart(kind=Span.LABEL),
            TextPart(text=after, kind=Span.CONTEXT, is_shortenable=can_cut),
        ]

    def _pieces(self, row: TaskRow) -> list[_Piece]:
        return [
            _Piece(ids=self._encode(part.text), kind=part.kind, is_shortenable=part.is_shortenable, keeps_end=part.keeps_end)
            for part in self._text_parts(row)
        ]

    def _fit(self, pieces: list[_Piece], room: int, row: TaskRow) -> list[_Piece]:
        excess = sum(len(piece.ids) for piece in pieces) - room
        if excess <= 0:
            return pieces
        lengths = {i: len(piece.ids) for i, piece in enumerate(pieces) if piece.is_shortenable}
        if sum(lengths.values()) < excess:
            raise self._does_not_fit(row)
        lengths = shorten(lengths, sum(lengths.values()) - excess)
        fitted = []
        for i, piece in enumerate(pieces):
            if i in lengths:
                start = len(piece.ids) - lengths[i] if piece.keeps_end else 0
                ids = piece.ids[start : start + lengths[i]]
                piece = _Piece(ids=ids, kind=piece.kind, is_shortenable=True, keeps_end=piece.keeps_end)
            fitted.append(piece)
        return fitted

    def _does_not_fit(self, row: TaskRow) -> DataError:
        return DataError(
            f"task '{self.task.name}', line {row.line}: does not fit into {self.context_length} tokens; only the fields "
            f"under shorten ({', '.join(self.task.shorten) or 'none'}) may be cut"
        )

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text) if text else []

    def _encode_label(self, word: str) -> list[int]:
        ids = self._encode(word)
        if not ids:
            raise ConfigError(f"task '{self.task.name}', prompt '{self.name}': an empty label word")
        if self._tokenizer.unk_id in ids:
            raise ConfigError(f"task '{self.task.name}': label word '{word}' has tokens unknown to the tokenizer")
        return ids

    def _refuse_marks(self, words: Sequence[str]) -> None:
        """Raise ConfigError for a word with a special token of the base in it: as text it has other tokens.

        A special token that is an ordinary word (`end`) may be a part of another one.
        """
        marks = sorted(self._tokenizer.marks, key=len, reverse=True)
        for word in words:
            mark = next((mark for mark in marks if mark == word.strip() or (mark in word and not mark.isalnum())), None)
            if mark is not None:
                what = "is" if word.strip() == mark else f"holds '{mark}',"
                raise ConfigError(
                    f"task '{self.task.name}', prompt '{self.name}': label word '{word}' {what} a special token of the base's "
                    "tokenizer; give another word"
                )

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


def _chat_form(task: TaskConfig, name: str, tokenizer: TextTokenizer) -> ChatForm | None:
    """Return the form of a prompt's conversation; None where it is none. Raises ConfigError where the base has no such form."""
    prompt = task.prompts[name]
    if not prompt.chat:
        return None
    try:
        return tokenizer.chat(prompt.system)
    except ConfigError as error:
        raise ConfigError(f"task '{task.name}', prompts.{name}.chat: {error}") from error


def text_before(task: TaskConfig, name: str, row: TaskRow) -> str:
    """Return a row's text in a prompt up to the label's place."""
    text = ""
    for part in parse_template(task, name):
        if part.kind is Span.LABEL:
            break
        if part.field is None:
            text += part.text
            continue
        blank = task.fields[part.field].blank
        if blank is not None:
            return text + row.texts[part.field].split(blank, 1)[0]
        text += row.texts[part.field]
    return text


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
        ConfigError: an unknown field, none at all, no place for the label, or more than one.
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
    if not any(part.field is not None for part in parts):
        raise ConfigError(f"{where}: {no_field(task.fields)}")
    return parts
