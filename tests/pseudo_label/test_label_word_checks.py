"""Label words seen by planted tokenizers: each fault is found, and words without faults are left alone."""

from __future__ import annotations

from typing import Any

import pytest

from adapt.checkpoint.vocabulary import open_tokenizer
from adapt.text.tokenizer_health import Finding, Level
from pipelines.config.locations import conf_dir, demo_dir
from pseudo_label.label_word_checks import check_label_words
from pseudo_label.prompts import text_before
from pseudo_label.task_config import FieldConfig, PromptConfig, TaskConfig, TaskRow
from pseudo_label.tasks import load_task
from tests.support.planted_tokenizers import LongestMatch

CHINESE = "这是很满意不失望。，：差好评"
ROW = TaskRow(id=1, texts={"text": "很好。"}, label=None, candidates=None, line=1)


def made(words: dict[str, str], template: str = "{text}：{label}", **prompt: Any) -> TaskConfig:
    prompts = {"reference": PromptConfig(template=template, **prompt)}
    return TaskConfig(name="planted", fields={"text": FieldConfig(path="text")}, label_words=words, prompts=prompts)


def found(task: TaskConfig, pieces: list[str], **settings: Any) -> list[Finding]:
    return check_label_words(task, LongestMatch([*CHINESE, *pieces], **settings), [ROW])


def test_words_without_faults_have_no_findings() -> None:
    assert found(made({"0": "差评", "1": "好评"}), ["差评", "好评"]) == []


def test_words_in_parts_of_characters_and_in_many_pieces_are_warnings() -> None:
    first, second, note = found(made({"0": "葩", "1": "很不满意失望", "2": "好"}), [])
    assert first.level is second.level is Level.WARNING
    assert "'葩' (<0xE8>|<0x91>|<0xA9>): spelt in parts of characters" in first.says
    assert "'很不满意失望' (很|不|满|意|失|望): more than 4 pieces" in second.says
    assert note.level is Level.NOTE and "label words have 1 to 6 pieces" in note.says


def test_labels_with_the_same_tokens_are_a_fault_and_unknown_words_too() -> None:
    task = made({"0": "Good", "1": "good"})
    (fault,) = found(task, [*"god"], fold=str.lower)
    assert fault.level is Level.FAULT
    assert "have the same tokens" in fault.says
    (fault,) = found(made({"0": "葩", "1": "好"}), [], has_bytes=False)
    assert "'葩' has tokens unknown" in fault.says


def test_a_word_that_begins_another_and_shared_first_pieces_are_said() -> None:
    warning, note = found(made({"0": "满", "1": "满意", "2": "差"}), [])
    assert warning.level is Level.WARNING
    assert "'满' begins '满意'" in warning.says
    assert note.level is Level.NOTE and "(满, 满意)" in note.says
    assert [x.level for x in found(made({"0": "满", "1": "满意"}, criterion="mean"), [])] == [Level.NOTE]


def test_a_word_that_merges_with_the_text_before_it_is_a_warning_with_its_pieces() -> None:
    (warning,) = found(made({"0": "满意", "1": "失望"}, "{text}这是{label}"), ["满意", "失望", "是满"])
    assert "'满意' (满意): other tokens in running text (是满|意, asked as 满意)" in warning.says
    assert "{label}" in warning.mend
    behind_text = made({"0": "满意", "1": "失望"}, "{text}{label}")
    (warning,) = found(behind_text, ["满意", "失望", "。满"])
    assert "。满|意" in warning.says


LETTERS = ["It was:", "It was", " good", "good", " bad", "bad", *"abcdefghijklmnopqrstuvwxyz .:I"]
ENGLISH = TaskRow(id=1, texts={"text": "fine by me."}, label=None, candidates=None, line=1)


@pytest.mark.parametrize("template", ["{text} It was:{label}", "{text} It was {label}"])
def test_a_word_without_the_space_that_belongs_to_it_is_a_warning(template: str) -> None:
    tokenizer = LongestMatch(LETTERS)
    (warning,) = check_label_words(made({"0": "bad", "1": "good"}, template), tokenizer, [ENGLISH])
    assert "'bad' (bad), 'good' (good): asked without the space" in warning.says
    assert "' bad'" in warning.mend
    assert check_label_words(made({"0": " bad", "1": " good"}, "{text} It was:{label}"), tokenizer, [ENGLISH]) == []
    assert check_label_words(made({"0": "bad", "1": "good"}, "{label}: {text}"), tokenizer, [ENGLISH]) == []


def test_what_prompts_have_in_common_is_said_once() -> None:
    prompts = {"reference": PromptConfig(template="{text}：{label}"), "other": PromptConfig(template="{text}，{label}")}
    task = TaskConfig(
        name="planted", fields={"text": FieldConfig(path="text")}, label_words={"0": "葩", "1": "好"}, prompts=prompts
    )
    (warning, *_) = found(task, [])
    assert warning.where == "task 'planted', prompts 'reference', 'other'"


def test_text_before_a_label_ends_at_a_blank_inside_a_field() -> None:
    task = TaskConfig(
        name="planted",
        fields={"text": FieldConfig(path="text", blank="#x#")},
        candidates="words",
        prompts={"reference": PromptConfig(template="读：{text}")},
    )
    row = TaskRow(id=1, texts={"text": "他#x#了"}, label=None, candidates=("来", "走"), line=1)
    assert text_before(task, "reference", row) == "读：他"
    assert check_label_words(task, LongestMatch([]), [row]) == []


def test_the_demo_has_no_findings_with_the_shipped_base() -> None:
    tokenizer = open_tokenizer(demo_dir() / "base")
    row = TaskRow(id=1, texts={"sentence": "菜不错，下次还来"}, label=None, candidates=None, line=1)
    for name in ("demo_reviews", "demo_topics"):
        task = load_task(name, [conf_dir() / "task"])
        assert [str(x) for x in check_label_words(task, tokenizer, [row]) if x.level is not Level.NOTE] == []
