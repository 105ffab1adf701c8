"""A task for OpenCompass: a configuration in Python (data set and model), and its rows.

The fields are those of its own configurations (github.com/open-compass/opencompass, `opencompass/configs/datasets/FewCLUE_*_ppl`).
Its PPLInferencer ranks by the mean loss of the whole filled prompt, this project's criterion `perplexity`, whatever the task says.
"""

from __future__ import annotations

import json
from pathlib import Path

from pseudo_label.harnesses.lm_eval import filled, row_notes
from pseudo_label.harnesses.prompt_text import HarnessRow, HarnessRows, Piece, PromptText

FOLDER = "opencompass"
_SIMILAR = "perplexity"
_TEXT = '''"""{title}
{notes}"""

from opencompass.datasets import HFDataset
from opencompass.models import HuggingFaceBaseModel
from opencompass.openicl.icl_evaluator import AccEvaluator
from opencompass.openicl.icl_inferencer import PPLInferencer
from opencompass.openicl.icl_prompt_template import PromptTemplate
from opencompass.openicl.icl_retriever import ZeroRetriever

HERE = __file__.replace("\\\\", "/").rpartition("/")[0]
MODEL = HERE.rpartition("/")[0]

datasets = [
    dict(
        type=HFDataset,
        abbr={abbr},
        path="json",
        data_files=HERE + {file},
        split="train",
        reader_cfg=dict(input_columns={columns}, output_column="label", test_split="train"),
        infer_cfg=dict(
            prompt_template=dict(
                type=PromptTemplate,
                template={{
{templates}
                }},
            ),
            retriever=dict(type=ZeroRetriever),
            inferencer=dict(type=PPLInferencer),
        ),
        eval_cfg=dict(evaluator=dict(type=AccEvaluator)),
    )
]

models = [
    dict(
        type=HuggingFaceBaseModel,
        abbr={abbr},
        path=MODEL,
        tokenizer_kwargs=dict(trust_remote_code=True),
        model_kwargs=dict(trust_remote_code=True),
        max_seq_len={context},
        max_out_len=1,
        batch_size=8,
        run_cfg=dict(num_gpus=0),
    )
]
'''


def write_opencompass(directory: Path, prompt: PromptText, rows: HarnessRows) -> str | None:
    """Write a task's configuration and rows into a folder of a directory; return why not, where rows cannot be said."""
    counts = {len(row.choices) for row in rows.rows}
    if len(counts) != 1:
        return "OpenCompass: its rows have different numbers of candidates, which its templates cannot say; no file was written"
    place = directory / FOLDER
    place.mkdir(exist_ok=True)
    own_words = not prompt.words
    slots = list(rows.rows[0].slots)
    columns = [*slots, *(_choice(number) for number in range(counts.pop()) if own_words)]
    words = [Piece(slot=_choice(number)) if own_words else Piece(text=word) for number, word in enumerate(rows.rows[0].choices)]
    templates = [f"                    {number}: {json.dumps(_template(prompt, word))}," for number, word in enumerate(words)]
    is_other = (
        []
        if prompt.criterion == _SIMILAR
        else [f"Ranked by the mean loss of the whole filled prompt, not by criterion {prompt.criterion}."]
    )
    notes = [*is_other, *(f"{note[0].upper()}{note[1:]}." for note in [*prompt.notes, *row_notes(rows)])]
    text = _TEXT.format(
        title=f"Task {json.dumps(prompt.name, ensure_ascii=False)[1:-1]} for OpenCompass, with the model one directory up.",
        notes="".join(f"\n{json.dumps(note, ensure_ascii=False)[1:-1]}" for note in notes) + ("\n" if notes else ""),
        abbr=json.dumps(f"moe_adapt_{prompt.name}"),
        file=json.dumps(f"/{prompt.name}.jsonl"),
        columns=json.dumps(columns),
        templates="\n".join(templates),
        context=prompt.form.context_length,
    )
    (place / f"{prompt.name}.py").write_text(text, encoding="utf-8")
    lines = [json.dumps(_record(row, own_words), ensure_ascii=False) for row in rows.rows]
    (place / f"{prompt.name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return None


def _template(prompt: PromptText, word: Piece) -> str:
    """Return the whole prompt with a label's word in its place and rows' columns in braces."""
    pieces = [*prompt.before, word, *prompt.after]
    braces = {piece.slot: f"{{{piece.slot}}}" for piece in pieces if piece.slot is not None}
    return prompt.form.start + filled(pieces, braces, prompt.form.separator)


def _record(row: HarnessRow, own_words: bool) -> dict[str, object]:
    choices = {_choice(number): word for number, word in enumerate(row.choices)} if own_words else {}
    return {"id": row.id, **row.slots, **choices, "label": row.label}


def _choice(number: int) -> str:
    return f"choice_{number}"
