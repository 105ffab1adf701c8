"""Rows of the articles' English zero-shot tasks, from files as their authors or data hubs lay them out, for a harness's task file.

It is copied next to that file, and needs nothing but Python: a row becomes a context, what may follow it, and which of these is
right. Prompts are those of the tasks of these names in lm-evaluation-harness (Gao et al.), so that figures compare. An open
question counts as answered where greedy decoding says one of its known answers.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Row = dict[str, Any]
_LETTERS = "ABCD"
_BLANK = "  _  ."


def rows(name: str, file: str, start: str = "") -> list[Row]:
    """Return a task's rows: `context` (after `start`), `choices`, and `gold`, the place or places of what is right.

    Raises:
        ValueError: a row has another layout; the message names its number and what it lacks.
    """
    found = []
    for number, record in enumerate(_records(Path(file)), start=1):
        try:
            made = _MAKERS[name](record)
        except (KeyError, IndexError, TypeError, ValueError, SyntaxError) as error:
            what = f"has no {error}" if isinstance(error, KeyError) else str(error)
            raise ValueError(f"{file}: row {number}: is no row of {name} ({what}); it needs {NEEDED[name]}") from error
        found += [{"context": start + context, "choices": choices, "gold": gold} for context, choices, gold in made]
    return found


def _records(file: Path) -> Iterator[Any]:
    """Yield the objects of a file of JSON lines, or of one JSON list."""
    text = file.read_text(encoding="utf-8")
    if text.lstrip().startswith("["):
        yield from json.loads(text)
        return
    for line in text.split("\n"):
        if line.strip():
            yield json.loads(line)


Made = list[tuple[str, list[str], Any]]


def _lambada(row: Row) -> Made:
    context, space, word = row["text"].rpartition(" ")
    if not space:
        raise ValueError("text: is a single word")
    return [(context, [word], 0)]


def _piqa(row: Row) -> Made:
    return [(f"Question: {row['goal']}\nAnswer:", [row["sol1"], row["sol2"]], _place(row["label"], 2))]


def _boolq(row: Row) -> Made:
    answer = row["label"] if "label" in row else row["answer"]
    return [(f"{row['passage']}\nQuestion: {row['question']}?\nAnswer:", ["no", "yes"], _place(int(answer), 2))]


def _race(row: Row) -> Made:
    """Ask an article's last question after its others with their answers."""
    if "problems" in row:
        problems = row["problems"]
        if isinstance(problems, str):
            problems = ast.literal_eval(problems)
        asked = [(one["question"], one["options"], one["answer"]) for one in problems]
    else:
        asked = list(zip(row["questions"], row["options"], row["answers"], strict=True))
    text = f"Article: {row['article']}\n\n"
    for question, options, letter in asked[:-1]:
        answer = options[_LETTERS.index(letter)]
        is_blank = question.endswith(_BLANK)
        text += f"{question[:-5]}{answer}\n" if is_blank else f"Question: {question}\nAnswer: {answer}\n"
    question, options, letter = asked[-1]
    return [(text + question, list(options), _LETTERS.index(letter))]


def _triviaqa(row: Row) -> Made:
    answer = row["answer"] if "answer" in row else row["Answer"]
    aliases = answer["aliases"] if "aliases" in answer else answer["Aliases"]
    question = row["question"] if "question" in row else row["Question"]
    return _open_question(f"Question: {question}?\nAnswer:", aliases)


def _webqs(row: Row) -> Made:
    if "utterance" in row:
        named = re.findall(r'\(description (?:"((?:[^"\\]|\\.)*)"|([^()"]+))\)', row["targetValue"])
        return _open_question(f"Question: {row['utterance']}\nAnswer:", [one or other for one, other in named])
    return _open_question(f"Question: {row['question']}\nAnswer:", row["answers"])


def _open_question(context: str, answers: list[str]) -> Made:
    """Leave out answers that go on from another one: greedy decoding that says them says the shorter one too."""
    kept: list[str] = []
    for answer in sorted(set(answers)):
        if not kept or not answer.startswith(kept[-1]):
            kept.append(answer)
    if not kept:
        raise ValueError("it has no answer")
    return [(context, kept, list(range(len(kept))))]


def _place(label: Any, count: int) -> int:
    place = int(label)
    if not 0 <= place < count:
        raise ValueError(f"label {label} is none of 0 to {count - 1}")
    return place


_MAKERS: dict[str, Callable[[Row], Made]] = {
    "lambada": _lambada,
    "piqa": _piqa,
    "boolq": _boolq,
    "race": _race,
    "triviaqa": _triviaqa,
    "webqs": _webqs,
}
NEEDED = {
    "lambada": "text",
    "piqa": "goal, sol1, sol2, label",
    "boolq": "passage, question, and answer or label",
    "race": "article, and questions, options, answers (or problems)",
    "triviaqa": "question and answer.aliases",
    "webqs": "question and answers (or utterance and targetValue)",
}
