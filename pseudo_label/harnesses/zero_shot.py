"""The articles' English zero-shot tasks for lm-evaluation-harness: a task file for each data file that the user has.

The task files name the data files where they are; nothing of them is copied. `zero_shot_rows.py` reads them, here to check them and
in the harness. TriviaQA and WebQs count an answer as right where greedy decoding says it, the others rank.
"""

from __future__ import annotations

import json
from pathlib import Path

from adapt.core.errors import DataError
from pseudo_label.harnesses import zero_shot_rows
from pseudo_label.harnesses.lm_eval import FOLDER, PREFIX

NAMES = tuple(zero_shot_rows.NEEDED)
TAG = f"{PREFIX}zero_shot"
_ENDINGS = (".jsonl", ".json")
_READER_NAME = "zero_shot_rows"
_LOADER = '''

def load(file: str, name: str, start: str = "", **others: object) -> dict[str, object]:
    """Return the data set that lm-evaluation-harness asks for."""
    from datasets import Dataset

    return {"test": Dataset.from_list(rows(name, file, start))}
'''
_RANKED = ["output_type: multiple_choice", "doc_to_choice: choices", "doc_to_target: gold"]
_WORD = ["output_type: loglikelihood", 'doc_to_target: "{{choices[0]}}"']
_METRICS = {
    "lambada": "[{metric: acc, aggregation: mean, higher_is_better: true}, "
    "{metric: perplexity, aggregation: perplexity, higher_is_better: false}]",
    "triviaqa": "[{metric: exact_match, aggregation: mean, higher_is_better: true}]",
    "webqs": "[{metric: exact_match, aggregation: mean, higher_is_better: true}]",
}
_ACCURACY = "[{metric: acc, aggregation: mean, higher_is_better: true}]"


def data_files(directory: Path) -> dict[str, Path]:
    """Return the data files of a directory by task: `lambada.jsonl`, `piqa.jsonl` and so on.

    Raises:
        DataError: it is no directory, or holds none of them.
    """
    if not directory.is_dir():
        raise DataError(f"{directory}: no such directory; it is to hold some of {', '.join(f'{name}.jsonl' for name in NAMES)}")
    named = [(name, directory / f"{name}{ending}") for ending in _ENDINGS for name in NAMES]
    found: dict[str, Path] = {}
    for name, file in named:
        if file.is_file():
            found.setdefault(name, file)
    if not found:
        raise DataError(f"{directory}: holds none of {', '.join(f'{name}.jsonl' for name in NAMES)}")
    return found


def write_zero_shot(directory: Path, files: dict[str, Path], start: str) -> dict[str, int]:
    """Write a task file for each data file into the folder of a directory; return how many rows each has.

    `start` is what is written before a text for the exported tokenizer to start it as a document.

    Raises:
        DataError: a file cannot be read as rows of its task.
    """
    place = directory / FOLDER
    place.mkdir(exist_ok=True)
    counts = {}
    for name, file in files.items():
        try:
            counts[name] = len(zero_shot_rows.rows(name, str(file)))
        except (ValueError, OSError) as error:  # broken JSON is a ValueError, and names no file
            text = str(error)
            raise DataError(text if str(file) in text else f"{file}: is neither JSON lines nor a JSON list ({text})") from error
        if not counts[name]:
            raise DataError(f"{file}: has no rows; it needs {zero_shot_rows.NEEDED[name]}")
        kwargs = {"file": str(file.resolve()), "name": name, **({"start": start} if start else {})}
        lines = [
            f"task: {TAG}_{name}",
            f"tag: {TAG}",
            f"custom_dataset: !function {_READER_NAME}.load",
            f"dataset_kwargs: {json.dumps(kwargs, ensure_ascii=True)}",
            "test_split: test",
            *(_WORD if name == "lambada" else _RANKED),
            'doc_to_text: "{{context}}"',
            'target_delimiter: " "',
            f"metric_list: {_METRICS.get(name, _ACCURACY)}",
            "metadata: {version: 1.0}",
        ]
        (place / f"zero_shot_{name}.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    reader = Path(zero_shot_rows.__file__).read_text(encoding="utf-8")
    (place / f"{_READER_NAME}.py").write_text(reader + _LOADER, encoding="utf-8")
    return counts
