"""A task's reference prompt as plain text with named slots, and its rows as what fills them, cut as they are for scoring.

Other programs encode a prompt as one text. Where this project encodes parts on their own, a `separator` that the exported tokenizer
cuts at and takes out stands between them, so that tokens are the same. `start` is written before a text where the exported
tokenizer does not start documents by itself. A prompt with `chat` is written with the turns of the base's chat template around one
slot for the user's text; so the other program must not apply the template once more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from adapt.core.errors import ConfigError
from adapt.core.spans import LabelForm, Span
from adapt.text.contract import ChatForm, TextTokenizer
from pseudo_label.chat_turns import user_text
from pseudo_label.decision import Decision, Method
from pseudo_label.labelling import ScoringConfig
from pseudo_label.prompts import Prompt, parse_template
from pseudo_label.tasks import TaskConfig, TaskRow, labels_of
from pseudo_label.zero_shot import criterion_of, form_of

_RESERVED = ("id", "label", "choices", "self", "loop", "range", "dict", "true", "false", "none")
_USER = "user_text"
_WHOLE_TEXT = ("total", "perplexity", "total_pmi", "total_domain_pmi")
_EXACT = {"sum": "acc", "total": "acc", "per_character": "acc_norm"}


@dataclass(frozen=True, kw_only=True)
class TextForm:
    """How a model's texts are written for programs that encode them as one."""

    tokenizer: TextTokenizer
    context_length: int
    start: str = ""
    separator: str = ""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A literal text, or a slot that a row fills."""

    text: str = ""
    slot: str | None = None


@dataclass(frozen=True, kw_only=True)
class PromptText:
    """A prompt for other programs: the text before the label and after it, and whether the latter counts in the ranking.

    `criterion` is this project's ranking, `metric` what lm-evaluation-harness calls it; `words` are the labels' (none: each row
    brings its own). `notes` say what is left out, a line each; `other_ranking` how lm-evaluation-harness ranks where it cannot rank
    by the criterion.
    """

    name: str
    form: TextForm
    before: tuple[Piece, ...]
    after: tuple[Piece, ...]
    counts_after: bool
    criterion: str
    metric: str
    words: tuple[str, ...]
    notes: tuple[str, ...]
    other_ranking: str | None


@dataclass(frozen=True, kw_only=True)
class HarnessRow:
    """A labelled row: its id, what fills the slots, its candidates' words and the place of the right one."""

    id: str
    slots: dict[str, str]
    choices: tuple[str, ...]
    label: int


@dataclass(frozen=True, kw_only=True)
class HarnessRows:
    """A task's rows for other programs; `n_cut` were cut to the context, `n_other` of them so that tokens differ from here."""

    rows: tuple[HarnessRow, ...]
    n_cut: int
    n_other: int


def prompt_text(task: TaskConfig, scoring: ScoringConfig, decision: Decision, form: TextForm) -> PromptText:
    """Return a task's reference prompt for other programs.

    Raises:
        ConfigError: the prompt ranks by something that they cannot rank by.
    """
    criterion = criterion_of(task, task.reference, scoring.criterion)
    where = f"task '{task.name}', prompt '{task.reference}'"
    if Span.LABEL not in criterion.kinds:
        raise ConfigError(
            f"{where}: ranks by the text given the label ({criterion.name}), which task files of other programs cannot"
        )
    if form_of(criterion, scoring.form) is LabelForm.MLM:
        raise ConfigError(f"{where}: predicts the label at <mask>, which task files of other programs cannot")
    spec = task.prompts[task.reference]
    chat = form.tokenizer.chat(spec.system) if spec.chat else None
    pieces = list(_pieces(task) if chat is None else _turns(chat, form, where))
    at = pieces.index(None)
    before, after = (tuple(piece for piece in part if piece is not None) for part in (pieces[:at], pieces[at + 1 :]))
    words = task.prompts[task.reference].label_words or task.label_words
    return PromptText(
        name=task.name,
        form=form if chat is None else replace(form, start=""),
        before=before,
        after=after,
        counts_after=criterion.name in _WHOLE_TEXT,
        criterion=criterion.name,
        metric=_EXACT.get(criterion.name, "acc"),
        words=tuple(words[label] for label in task.labels) if task.candidates is None else (),
        notes=tuple(_left_out(task, decision)),
        other_ranking=_other_ranking(criterion.name, chat),
    )


def harness_rows(task: TaskConfig, prompt: PromptText, rows: Sequence[TaskRow]) -> HarnessRows:
    """Fill a prompt's slots with labelled rows. Raises DataError for a row that does not fit into the context."""
    rendered = Prompt(task, task.reference, prompt.form.tokenizer, prompt.form.context_length)
    is_chat, marks = task.prompts[task.reference].chat, prompt.form.tokenizer.marks
    slots = [piece.slot for piece in _pieces(task) if piece is not None]
    found, n_cut, n_other = [], 0, 0
    for row in rows:
        assert row.label is not None, "only labelled rows are measured on"
        parts, is_same = rendered.fitted_parts(row)
        if is_chat:
            filled = {_USER: user_text(parts)}
            is_same = not any(mark in filled[_USER] for mark in marks)
        else:
            texts = [part.text for part in parts if part.kind is not Span.LABEL]
            filled = {slot: text for slot, text in zip(slots, texts, strict=True) if slot is not None}
        n_cut += rendered.length(row) > prompt.form.context_length
        n_other += not is_same
        place = labels_of(row, task).index(row.label)
        found.append(HarnessRow(id=str(row.id), slots=filled, choices=row.candidates or prompt.words, label=place))
    return HarnessRows(rows=tuple(found), n_cut=n_cut, n_other=n_other)


def _pieces(task: TaskConfig) -> Iterator[Piece | None]:
    """Yield the parts of the reference prompt in the order of `Prompt.fitted_parts`; None is the label's place."""
    taken: dict[str, int] = {}

    def slot(name: str) -> Piece:
        plain = name if name.isidentifier() and name not in _RESERVED else f"text_{len(taken)}"
        taken[plain] = taken.get(plain, 0) + 1
        return Piece(slot=plain if taken[plain] == 1 else f"{plain}_{taken[plain]}")

    for part in parse_template(task, task.reference):
        if part.kind is Span.LABEL:
            yield None
        elif part.field is None:
            yield Piece(text=part.text)
        elif task.fields[part.field].blank is None:
            yield slot(part.field)
        else:
            yield from (slot(f"{part.field}_before"), None, slot(f"{part.field}_after"))


def _turns(chat: ChatForm, form: TextForm, where: str) -> Iterator[Piece | None]:
    """Yield the parts of a prompt that is a conversation; the document start is left out where the exported tokenizer writes it.

    Raises:
        ConfigError: other programs would put a document start before the conversation, which has none.
    """
    (start,) = form.tokenizer.pieces([form.tokenizer.bos_id])
    if not form.start and not chat.before.startswith(start):
        raise ConfigError(
            f"{where}: the base's chat template writes no document start, and other programs put {start} before every text; they "
            "would score other tokens"
        )
    yield Piece(text=chat.before if form.start else chat.before.removeprefix(start))
    yield Piece(slot=_USER)
    yield Piece(text=chat.after + chat.gap)
    yield None


def _other_ranking(criterion: str, chat: ChatForm | None) -> str | None:
    spaces = "" if chat is None else chat.after[len(chat.after.rstrip()) :]
    if spaces and criterion == "per_character":
        return "criterion per_character is left out: lm-evaluation-harness counts the line breaks before the answer too"
    if criterion in _EXACT:
        return None
    what = "the log-likelihood of all from the label on" if criterion in _WHOLE_TEXT else "the label's log-likelihood"
    return f"criterion {criterion} is left out: ranked by {what}"


def _left_out(task: TaskConfig, decision: Decision) -> Iterator[str]:
    """Yield a line for each thing that a task file cannot say."""
    others = [name for name in task.prompts if name != task.reference]
    if others:
        yield f"prompts left out: {', '.join(others)}"
    if task.synonyms_of(task.reference):
        yield "synonyms are left out: each label has its own word only"
    if task.label_tree:
        yield "the label tree (coarse to fine) is left out: all labels are ranked at once"
    if decision.method is not Method.RAW:
        yield f"method {decision.method.value} (calibration, several prompts, other teachers) is left out: this is method raw"
