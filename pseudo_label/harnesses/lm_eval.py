"""A task for lm-evaluation-harness: YAML of kind multiple_choice, its rows, and the few lines of Python that read them.

Gao et al., "A framework for few-shot language model evaluation"; the form is that of lm_eval 0.4.13. Rows are read by a function,
since a path in the YAML would be one of the directory that the program is started in.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from pseudo_label.harnesses.prompt_text import HarnessRows, Piece, PromptText

FOLDER = "lm_eval"
PREFIX = "moe_adapt_"
_READER_NAME = "local_rows"
_READER = '''"""The rows next to this file, for lm-evaluation-harness."""

import json
from pathlib import Path

from datasets import Dataset


def load(file: str, **others: object) -> dict[str, Dataset]:
    with (Path(__file__).parent / file).open(encoding="utf-8", newline="\\n") as lines:
        return {"test": Dataset.from_list([json.loads(line) for line in lines])}
'''


def write_lm_eval(directory: Path, prompt: PromptText, rows: HarnessRows) -> None:
    """Write a task's YAML, rows and their reader into a folder of a directory."""
    place = directory / FOLDER
    place.mkdir(exist_ok=True)
    (place / f"{_READER_NAME}.py").write_text(_READER, encoding="utf-8")
    counted = prompt.after if prompt.counts_after else ()
    has_own_choices = bool(counted) or not prompt.words
    lines = [
        *(f"# {' '.join(note.split())}" for note in all_notes(prompt, rows)),
        f"task: {_quoted(PREFIX + prompt.name)}",
        f"custom_dataset: !function {_READER_NAME}.load",
        f"dataset_kwargs: {{file: {_quoted(prompt.name + '.jsonl')}}}",
        "test_split: test",
        "output_type: multiple_choice",
        f"doc_to_text: {_quoted(_template(prompt))}",
        f"doc_to_choice: {'choices' if has_own_choices else _quoted(list(prompt.words))}",
        "doc_to_target: label",
        'target_delimiter: ""',
        f"metric_list: [{{metric: {prompt.metric}, aggregation: mean, higher_is_better: true}}]",
        "metadata: {version: 1.0}",
    ]
    (place / f"{prompt.name}.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    with (place / f"{prompt.name}.jsonl").open("w", encoding="utf-8") as stream:
        for row in rows.rows:
            record: dict[str, object] = {"id": row.id, **row.slots, "label": row.label}
            if has_own_choices:
                behind = filled(counted, row.slots, prompt.form.separator)
                record["choices"] = [prompt.form.separator.join([word, behind]) if behind else word for word in row.choices]
            stream.write(json.dumps(record, ensure_ascii=False) + "\n")


def all_notes(prompt: PromptText, rows: HarnessRows) -> list[str]:
    """Return what the YAML leaves out, and what is to be said of its rows."""
    return [*([prompt.other_ranking] if prompt.other_ranking else []), *prompt.notes, *row_notes(rows)]


def row_notes(rows: HarnessRows) -> list[str]:
    """Return what is to be said of rows that were cut."""
    cut = [f"{rows.n_cut} of {len(rows.rows)} rows were cut to the model's context"] if rows.n_cut else []
    odd = "were cut inside a character or spell a special token: their tokens differ from this project's"
    other = [f"{rows.n_other} rows {odd}"] if rows.n_other else []
    return cut + other


def filled(pieces: Sequence[Piece], slots: dict[str, str], separator: str) -> str:
    """Return pieces as one text of a row."""
    return separator.join(piece.text if piece.slot is None else slots[piece.slot] for piece in pieces)


def _template(prompt: PromptText) -> str:
    """Return the text before the label as a Jinja template."""
    texts = [_literal(piece.text) if piece.slot is None else f"{{{{{piece.slot}}}}}" for piece in prompt.before]
    return _literal(prompt.form.start) + "".join(text + prompt.form.separator for text in texts)


def _literal(text: str) -> str:
    return f"{{{{ {json.dumps(text)} }}}}" if any(mark in text for mark in "{}#%\\") else text


def _quoted(value: str | list[str]) -> str:
    """Return a value as YAML, with everything that is not seen in an editor escaped."""
    text = json.dumps(value, ensure_ascii=False)
    return "".join(letter if letter.isprintable() and not 0xFDD0 <= ord(letter) <= 0xFDEF else _escaped(letter) for letter in text)


def _escaped(letter: str) -> str:
    return f"\\u{ord(letter):04x}" if ord(letter) <= 0xFFFF else f"\\U{ord(letter):08x}"
