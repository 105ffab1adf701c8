"""A row is the same however it is spelled, long passages in common are found, and what one split may lack does not count."""

from __future__ import annotations

import pytest

from pseudo_label.leakage import PASSAGE_CHARACTERS, EvaluationTexts, plain_text
from pseudo_label.tasks import FieldConfig, PromptConfig, TaskConfig, TaskRow

PASSAGE = "春江潮水连海平海上明月共潮生滟滟随波千万里何处春江"
SENTENCE = "iPhone 15 发布，售价5999元！"
VARIANTS = {
    "as it is": SENTENCE,
    "full-width letters and digits": "ｉＰｈｏｎｅ １５ 发布，售价５９９９元！",
    "another case": "IPHONE 15 发布，售价5999元！",
    "half-width punctuation": "iPhone 15 发布,售价5999元!",
    "no punctuation and no spaces": "iPhone15发布售价5999元",
    "more spaces": " iPhone  15 发布，\u3000售价 5999 元 ！\n",
    "quotation marks": "《iPhone 15》发布，售价“5999”元！",
}
OTHERS = {
    "another number": "iPhone 16 发布，售价5999元！",
    "another word": "iPhone 15 上市，售价5999元！",
    "another order": "售价5999元！iPhone 15 发布，",
    "a part of it": "iPhone 15 发布",
    "nothing": "",
}


def task() -> TaskConfig:
    return TaskConfig(
        name="planted",
        fields={
            "one": FieldConfig(path="one"),
            "two": FieldConfig(path="two"),
            "keywords": FieldConfig(path="keywords", is_optional=True),
        },
        label_words={"a": "甲", "b": "乙"},
        prompts={"reference": PromptConfig(template="{one}{two}{label}")},
    )


def row(one: str, two: str = "", keywords: str = "") -> TaskRow:
    texts = {"one": one, "two": two, "keywords": keywords}
    return TaskRow(id=0, texts=texts, label=None, candidates=None, line=1)


def held(*rows: TaskRow) -> EvaluationTexts:
    return EvaluationTexts(rows, task())


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_another_spelling_is_the_same_row_in_both_directions(variant: str) -> None:
    assert held(row(SENTENCE, "二")).has_row(row(VARIANTS[variant], "二"))
    assert held(row(VARIANTS[variant], "二")).has_row(row(SENTENCE, "二"))


@pytest.mark.parametrize("other", list(OTHERS))
def test_another_text_is_another_row(other: str) -> None:
    assert not held(row(SENTENCE, "二")).has_row(row(OTHERS[other], "二"))
    assert not held(row("一", SENTENCE)).has_row(row("一", OTHERS[other]))


def test_texts_are_compared_field_by_field() -> None:
    known = held(row("甲乙", "丙"))
    assert known.has_row(row("甲，乙", "丙。"))
    for one, two in (("甲", "乙丙"), ("丙", "甲乙"), ("甲乙丙", ""), ("甲乙", "甲乙")):
        assert not known.has_row(row(one, two))


def test_optional_fields_do_not_count() -> None:
    known = held(row("甲", "乙", keywords=PASSAGE))
    assert known.has_row(row("甲", "乙"))
    assert known.has_row(row("甲", "乙", keywords="别的"))
    assert not known.shares_passage(row("丙", PASSAGE))
    assert not held(row("丙", PASSAGE)).shares_passage(row("甲", "乙", keywords=PASSAGE))


def test_a_passage_of_24_characters_in_common_is_found_and_one_of_23_is_not() -> None:
    assert PASSAGE_CHARACTERS == 24 < len(PASSAGE)
    known = held(row(f"前面是别的话{PASSAGE[:24]}后面也是"))
    assert known.shares_passage(row(f"完全不同的开头{PASSAGE[:24]}完全不同的结尾"))
    assert known.shares_passage(row(PASSAGE[:24]))
    assert not known.shares_passage(row(f"完全不同的开头{PASSAGE[:23]}完全不同的结尾"))
    assert not known.shares_passage(row(PASSAGE[:23]))


def test_a_passage_is_found_across_fields_of_two_rows_and_in_another_spelling() -> None:
    known = held(row("一", PASSAGE))
    spelled = "，".join(PASSAGE)
    assert known.shares_passage(row(spelled))
    assert known.shares_passage(row("二", f"「{spelled}」"))
    assert not known.has_row(row(spelled))


def test_a_passage_is_not_joined_over_two_fields() -> None:
    assert not held(row(PASSAGE[:12], PASSAGE[12:24])).shares_passage(row(PASSAGE[:24]))
    assert not held(row(PASSAGE[:24])).shares_passage(row(PASSAGE[:12], PASSAGE[12:24]))


def test_short_rows_are_the_same_row_without_sharing_a_passage() -> None:
    known = held(row("短句"))
    assert known.has_row(row("短句！"))
    assert not known.shares_passage(row("短句"))


def test_without_evaluation_rows_nothing_is_known() -> None:
    assert not held().has_row(row(SENTENCE))
    assert not held().shares_passage(row(PASSAGE * 3))


def test_every_evaluation_row_is_known() -> None:
    known = held(*(row(f"第{i}句", "话") for i in range(50)))
    assert all(known.has_row(row(f"第{i}句。", "话")) for i in range(50))
    assert not known.has_row(row("第50句", "话"))


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("Ａｂ１２，ＣD", "ab12cd"),
        ("①②", "12"),
        ("㎏", "kg"),
        ("ﬁ", "fi"),
        ("Straße", "strasse"),
        ("…！？ \t", ""),
        ("ｱｲｳ", "アイウ"),
    ],
)
def test_plain_text_keeps_letters_digits_and_characters_normalised(text: str, plain: str) -> None:
    assert plain_text(text) == plain
    assert plain_text(plain) == plain
