"""The report's section on prompts: one row of the task under each prompt with each label, token by token, as the model reads it."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from adapt.checkpoint.vocabulary import tokenizer_of
from adapt.core.artifacts import Artifact
from adapt.core.errors import AdaptError
from adapt.core.spans import LabelForm, Span
from adapt.core.typed import from_plain
from adapt.text.contract import TextTokenizer
from pipelines.report_page.page import Section, heading, note, table, tokens
from pipelines.stages.models import context_of, input_place
from pseudo_label.label_word_checks import pieces_of
from pseudo_label.prompts import Prompt
from pseudo_label.tasks import TaskConfig, TaskRow

_MOST_READ = 6  # labels of a prompt that are read in full
_MOST_LISTED = 60
_MOST_PROMPTS = 8
_SHORT_TEXT = 120  # characters


def prompts_section(task_name: str, evaluated: Artifact, rows: Sequence[TaskRow]) -> Section:
    """Lay out a short row of `rows` under each prompt that was evaluated; without rows, texts stand as an ellipsis."""
    title = f"How prompts read: {task_name}"
    base = input_place(evaluated, "base")
    if base is None:
        return Section(title=title, parts=[note("The base that was measured is gone, and its tokenizer with it.")])
    try:
        task = from_plain(TaskConfig, evaluated.config["task"], str(evaluated.path))
        tokenizer = tokenizer_of(base)
        row = _row(task, rows)
        if row is None:
            return Section(title=title, parts=[note("Each row has candidates of its own, and no row is at hand (data.root).")])
        parts = _prompts(task, row, tokenizer, context_of(base), list(evaluated.config["prompts"] or task.prompts))
    except AdaptError as error:
        return Section(title=title, parts=[note(f"Not shown: {error}.")])
    is_masked = evaluated.config["form"] == LabelForm.MLM.value
    said = "Each box is a token: solid boxes are the row's text, dashed ones the prompt's, filled ones the label's."
    said += " A label's tokens are read as mask tokens, which predict them." if is_masked else ""
    said += "" if rows else " Texts are left out, since data.root is not given."
    return Section(title=title, parts=[note(said), *parts])


def _prompts(task: TaskConfig, row: TaskRow, tokenizer: TextTokenizer, context: int, names: Sequence[str]) -> list[Markup]:
    parts = []
    for name in names[:_MOST_PROMPTS]:
        prompt = Prompt(task, name, tokenizer, context)
        labels = [str(i) for i in range(len(row.candidates))] if row.candidates is not None else task.labels
        parts.append(heading(f"Prompt {name}"))
        listed = []
        for place, label in enumerate(labels[:_MOST_LISTED]):
            text = prompt.labelled(row, label)
            pieces = pieces_of(tokenizer, text.ids_T.tolist())
            kinds = [Span(int(kind)).name.lower() for kind in text.kinds_T]
            if place < _MOST_READ:
                parts.append(tokens(f"label {label}", list(zip(pieces, kinds, strict=True))))
            own = [piece for piece, kind in zip(pieces, kinds, strict=True) if kind == "label"]
            listed.append([label, "|".join(own), str(len(own)), str(len(text))])
        parts.append(table(("label", "its tokens", "tokens", "tokens of the whole reading"), listed))
        if len(labels) > _MOST_LISTED:
            parts.append(note(f"{len(labels) - _MOST_LISTED} more labels are left out."))
    return parts


def _row(task: TaskConfig, rows: Sequence[TaskRow]) -> TaskRow | None:
    """Return the first row that is short, or the shortest; without rows one whose texts are left out, where that can be read."""
    if rows:
        lengths = [sum(map(len, row.texts.values())) for row in rows]
        return next((row for row, n in zip(rows, lengths, strict=True) if n <= _SHORT_TEXT), rows[lengths.index(min(lengths))])
    if task.candidates is not None:
        return None
    texts = {name: spec.blank or "…" for name, spec in task.fields.items()}
    return TaskRow(id=None, texts=texts, label=None, candidates=None, line=0)
