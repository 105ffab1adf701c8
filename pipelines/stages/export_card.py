"""The README of an export: what it is, how it is used, its figures, and where it comes from.

Texts of a task file and of data are escaped: nothing of them is a mark of Markdown or HTML.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adapt.core.artifacts import Artifact
from adapt.core.errors import counted, shown
from adapt.core.store_places import is_key
from pipelines.stages.evaluated_model import ADAPTED
from pipelines.stages.products import Adaptation
from pseudo_label.harnesses.lm_eval import PREFIX
from pseudo_label.predictor import PredictorSpec
from pseudo_label.tasks import TaskConfig

_FRONT_MATTER = "---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags: [moe-adapt]\n---"
_MOST_LABELS = 60
_MARKS = re.compile(r"([\\`*_\[\]|~@]|:(?=//)|(?<=www)\.)")


@dataclass(frozen=True, kw_only=True)
class ForTransformers:
    """An export that transformers opens: by code that lies next to the weights or not, with task files for other programs or not.

    `family` says whether servers know the family of a model of this project.
    """

    has_code: bool
    has_tasks: bool
    family: str | None = None


def escaped(text: str) -> str:
    """Return a text as Markdown that shows it: one line, no marks, no HTML, no control characters."""
    one_line = " ".join(shown(text, kept="\n").split())
    return _MARKS.sub(r"\\\1", html.escape(one_line, quote=False))


def card(
    spec: PredictorSpec,
    table: Sequence[Mapping[str, Any]],
    gain: str | None,
    base: Artifact,
    model: Artifact,
    transformers: ForTransformers | None = None,
) -> str:
    """Return the README of an export.

    `table` holds the lines of accuracies that evaluation measured, `gain` says what adaptation gained (None where nothing was
    adapted), `model` is the exported one. `transformers` is absent where only this project opens it.
    """
    task, method = spec.task, spec.decision.method.value
    is_adapted = gain is not None
    parts = [
        *([] if transformers is None else [_FRONT_MATTER]),
        f"# {escaped(task.name)}",
        f"A classifier of texts, made with moe-adapt: a language model {'adapted to' if is_adapted else 'for'} the task "
        f"*{escaped(task.name)}*, with its tokenizer, its prompts and the rule that decides (method `{method}`).",
        "## Labels",
        *_labels(task),
        "## Prompts",
        *_prompts(spec),
        "## How to use it",
        "Rows are csv, xlsx, JSON lines or Parquet, with " + _columns(task) + ". `DIR` is this directory.",
        "    python -m pipelines.predict checkpoint=DIR input=rows.csv output=labelled.csv",
        "\n".join(f"    {line}" for line in _python(task)),
        *([] if transformers is None else _for_transformers(task, transformers)),
        "## Data",
        _data(table, model if is_adapted else None),
        "## Figures",
        *_figures([line for line in table if is_adapted or line["model"] != ADAPTED], method),
        *([] if gain is None else [f"Compared with the best without adapting: {escaped(gain)}."]),
        "## Where it comes from",
        _markdown_table(
            ("what", "sha256 of its content"),
            [
                ("base" + _named(base), f"`{base.digest}`"),
                (f"exported model (stage {escaped(model.stage)})", f"`{model.digest}`"),
            ],
        ),
        "`provenance.json` has all of it with the settings, `manifest.json` the sum of every file.",
        "## Licence",
        "The weights come from the base named above: its licence holds for this model too, and may ask that it is named or passed "
        "on. So may the licence of the texts that it was adapted to. moe-adapt itself is under Apache-2.0.",
    ]
    return "\n\n".join(parts) + "\n"


def _labels(task: TaskConfig) -> list[str]:
    if task.candidates is not None:
        return [
            f"Every row brings its own candidates, in the column {_code(task.candidates)}; the answer is the place of one, from 0."
        ]
    rows = [(escaped(label), escaped(word)) for label, word in task.label_words.items()]
    rest = [f"And {len(rows) - _MOST_LABELS} more, in `predictor.json`."] if len(rows) > _MOST_LABELS else []
    return [_markdown_table(("label", "words"), rows[:_MOST_LABELS]), *rest]


def _prompts(spec: PredictorSpec) -> list[str]:
    """Return the prompts that answers come from, with their words where they have their own."""
    task = spec.task
    names = [name for name in dict.fromkeys([*spec.decision.prompts, task.reference]) if name in task.prompts]
    rows = []
    for name in names:
        prompt = task.prompts[name]
        words = ", ".join(escaped(word) for word in (prompt.label_words or {}).values())
        rows.append((escaped(name), _code(prompt.template).replace("|", "\\|"), words, escaped(prompt.criterion)))
    said = "Fields of a row stand in braces, `{label}` is the label's place. Candidates are ranked by the criterion."
    chats = [name for name in names if task.prompts[name].chat]
    if chats:
        said += f" In turns of the base's chat template, the label as the assistant's answer: {', '.join(map(escaped, chats))}."
    return [said, _markdown_table(("prompt", "template", "words of its own", "criterion"), rows)]


def _data(table: Sequence[Mapping[str, Any]], adapted: Artifact | None) -> str:
    """Return which rows the model was adapted on and measured on."""
    steps = "" if adapted is None else f" in {Adaptation.of(adapted).steps:,} steps"
    learned = "Nothing was adapted." if adapted is None else f"Adapted on the task's unlabeled rows{steps}; no label was read."
    measured = dict.fromkeys((escaped(str(line["split"])), int(line["n"])) for line in table)
    said = ", ".join(f"{split} ({counted(n, 'row')})" for split, n in measured)
    return f"{learned} Measured on {said}." if measured else f"{learned} Not measured on labelled rows."


def _for_transformers(task: TaskConfig, how: ForTransformers) -> list[str]:
    """Return how other programs open the export."""
    trusted = ", trust_remote_code=True" if how.has_code else ""
    lines = [
        "from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline",
        f'model = AutoModelForCausalLM.from_pretrained("DIR"{trusted})',
        f'tokenizer = AutoTokenizer.from_pretrained("DIR"{trusted})',
        f'pipeline("text-generation", model=model, tokenizer=tokenizer{trusted})("...", max_new_tokens=20)',
    ]
    code = "transformers 5 opens it by the code next to the weights." if how.has_code else "transformers opens it."
    found = [
        "## In transformers",
        " ".join([code, *([how.family] if how.family else [])]),
        "\n".join(f"    {line}" for line in lines),
    ]
    if how.has_tasks:
        arguments = "pretrained=DIR,trust_remote_code=True" if how.has_code else "pretrained=DIR"
        found += [
            "The folders `lm_eval` and `opencompass` have the task for lm-evaluation-harness and OpenCompass: the reference prompt "
            "with labelled rows. Comments at the top of their files say what they leave out.",
            f"    lm_eval --model hf --model_args {arguments} --tasks {PREFIX}{task.name} --include_path DIR",
        ]
    return found


def _columns(task: TaskConfig) -> str:
    paths = [_code(field.path) + (" (may be missing)" if field.is_optional else "") for field in task.fields.values()]
    names = ", ".join(paths)
    return f"the column {names}" if len(paths) == 1 else f"the columns {names}"


def _python(task: TaskConfig) -> list[str]:
    record: dict[str, Any] = {}
    for field in task.fields.values():
        *sections, name = field.path.split(".")
        inside = record
        for section in sections:
            inside = inside.setdefault(section, {})
        inside[name] = f"... {field.blank} ..." if field.blank else "..."
    if task.candidates is not None:
        record[task.candidates] = ["...", "..."]
    return [
        "import pseudo_label",
        'predictor = pseudo_label.load("DIR")',
        f"[answer] = predictor.predict([{record!r}])",
        "answer.label, answer.probabilities[answer.label]",
    ]


def _figures(table: Sequence[Mapping[str, Any]], method: str) -> list[str]:
    rows = [
        (escaped(str(line["split"])), escaped(str(line["model"])), escaped(str(line["method"])), str(line["n"]),
         f"{100 * line['accuracy']:.1f}", f"{100 * line['ci95'][0]:.1f} to {100 * line['ci95'][1]:.1f}")
        for line in table
    ]  # fmt: skip
    if not rows:
        return ["Not measured: the task had no labelled rows."]
    said = f"Accuracy on labelled rows in %, with its 95 % interval. This export answers by `{method}`."
    return [said, _markdown_table(("split", "model", "method", "rows", "accuracy", "interval"), rows)]


def _named(base: Artifact) -> str:
    """Return a base's name, where its directory has one that says something, and the stage that made it."""
    return f" (stage {escaped(base.stage)})" if is_key(base.path.name) else f" ({escaped(base.path.name)})"


def _code(text: str) -> str:
    """Return a text as a span of code, whatever backticks are in it."""
    plain = " ".join(shown(text, kept="\n").split())
    fence = "`" * (max((len(run) for run in re.findall(r"`+", plain)), default=0) + 1)
    space = " " if len(fence) > 1 else ""
    return f"{fence}{space}{plain}{space}{fence}"


def _markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
