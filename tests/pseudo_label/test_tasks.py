"""Task files are checked as a whole, and rows of any CLUE layout are read, every mistake named by file and line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from adapt.core.errors import ConfigError, DataError
from adapt.core.spans import LabelForm, Span
from adapt.core.typed import from_plain, to_plain
from adapt.text.tokenizer import Tokenizer
from pipelines.config.locations import conf_dir
from pseudo_label.criteria.contract import get_criterion
from pseudo_label.prompts import Prompt
from pseudo_label.tasks import TaskConfig, TaskRow, load_task, read_rows, read_split, row_digest, row_from, split_path

TASKS = Path(__file__).resolve().parents[2] / "conf" / "task"

PAIRS = """
fields:
  premise: {path: sentence1}
  hypothesis: {path: sentence2}
label_words: {entailment: 是的, neutral: 也许, contradiction: 不是}
prompts: {reference: {template: "{premise}？{label}，{hypothesis}"}}
"""
NESTED = """
fields:
  text: {path: text}
  first: {path: target.span1_text}
  second: {path: target.span2_text}
label_words: {"true": 指的是, "false": 不是}
prompts: {reference: {template: "{text}其中{second}{label}{first}"}}
"""
LISTS = """
fields:
  abstract: {path: abst}
  keywords: {path: keyword}
  more: {path: more, join: "/", is_optional: true}
label_words: {0: 不是, 1: 是}
prompts: {reference: {template: "{abstract}{keywords}{more}{label}关键词"}}
"""
CLOZE = """
fields: {content: {path: content, blank: "#idiom#"}}
label_path: answer
candidates: candidates
prompts: {reference: {template: "{content}"}}
"""
TREE = """
fields: {sentence: {path: sentence}}
label_words: {a: 甲, b: 乙, c: 丙}
label_tree: {一: [a, b], 二: [c]}
prompts: {reference: {template: "{sentence}{label}"}}
"""


def task_from(tmp_path: Path, text: str, name: str = "planted") -> TaskConfig:
    (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
    return load_task(name, [tmp_path])


def row_of(task: TaskConfig, **record: Any) -> TaskRow:
    return row_from(record, task, "rows.json", 7)


def test_a_sentence_pair_has_two_texts(tmp_path: Path) -> None:
    row = row_of(task_from(tmp_path, PAIRS), sentence1="下雨了", sentence2="天晴", label="neutral", id=3)
    assert row == TaskRow(id=3, texts={"premise": "下雨了", "hypothesis": "天晴"}, label="neutral", candidates=None, line=7)


def test_a_field_may_be_nested(tmp_path: Path) -> None:
    task = task_from(tmp_path, NESTED)
    row = row_of(task, text="他说", target={"span1_text": "他", "span2_text": "小王"}, label="true")
    assert row.texts == {"text": "他说", "first": "他", "second": "小王"}
    assert row.label == "true"
    with pytest.raises(DataError, match=r"rows\.json, line 7: has no 'target\.span2_text' \(field 'second'\)"):
        row_of(task, text="他说", target={"span1_text": "他"})
    with pytest.raises(DataError, match=r"target\.span1_text"):
        row_of(task, text="他说", target="他")
    with pytest.raises(DataError, match=r"its 'target\.span1_text' \(field 'first'\) is null"):
        row_of(task, text="他说", target={"span1_text": None, "span2_text": "小王"})


def test_a_list_is_joined_and_an_optional_field_may_be_missing(tmp_path: Path) -> None:
    task = task_from(tmp_path, LISTS)
    row = row_of(task, abst="摘要", keyword=["水", "火", 3], more=["x", "y"])
    assert row.texts == {"abstract": "摘要", "keywords": "水、火、3", "more": "x/y"}
    assert row_of(task, abst="摘要", keyword=[]).texts == {"abstract": "摘要", "keywords": "", "more": ""}


def test_a_blank_has_candidates_of_its_own_row(tmp_path: Path) -> None:
    task = task_from(tmp_path, CLOZE)
    row = row_of(task, content="他#idiom#了", candidates=["画龙点睛", "守株待兔"], answer=1, id=0)
    assert row.candidates == ("画龙点睛", "守株待兔")
    assert (row.texts["content"], row.label, row.id) == ("他#idiom#了", "1", 0)
    with pytest.raises(DataError, match="line 7: 'content' has no blank #idiom#"):
        row_of(task, content="他了", candidates=["a"])
    with pytest.raises(DataError, match="line 7: 'content' has 2 blanks #idiom#, and the label fills one"):
        row_of(task, content="他#idiom#了#idiom#", candidates=["a"])
    without: list[dict[str, Any]] = [{}, {"candidates": []}, {"candidates": "画龙点睛"}]
    for candidates in without:
        with pytest.raises(DataError, match="line 7: has no list 'candidates'"):
            row_of(task, content="他#idiom#了", **candidates)


@pytest.mark.parametrize(("label", "name"), [(0, "0"), ("1", "1"), ("0", "0"), (None, None)])
def test_a_label_may_be_a_number_or_a_string(tmp_path: Path, label: object, name: str | None) -> None:
    assert row_of(task_from(tmp_path, LISTS), abst="a", keyword=[], label=label).label == name


@pytest.mark.parametrize(("label", "name"), [(True, "true"), (False, "false"), ("true", "true")])
def test_a_json_boolean_is_the_label_of_its_spelling(tmp_path: Path, label: object, name: str) -> None:
    target = {"span1_text": "他", "span2_text": "她"}
    assert row_of(task_from(tmp_path, NESTED), text="t", target=target, label=label).label == name


def test_a_label_without_a_word_is_named_by_file_and_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"rows\.json, line 7: label 'maybe' has no label word; add it under label_words"):
        row_of(task_from(tmp_path, PAIRS), sentence1="a", sentence2="b", label="maybe")


@pytest.mark.parametrize(("keys", "row_id"), [({"id": 5}, 5), ({"idx": "x9"}, "x9"), ({"id": 0, "idx": 8}, 0), ({}, 6)])
def test_the_id_is_id_or_idx_or_the_place_of_the_line(tmp_path: Path, keys: dict[str, Any], row_id: object) -> None:
    assert row_of(task_from(tmp_path, PAIRS), sentence1="a", sentence2="b", **keys).id == row_id


def test_rows_with_the_same_texts_have_the_same_digest(tmp_path: Path) -> None:
    task = task_from(tmp_path, PAIRS)
    one = row_of(task, sentence1="下雨 了", sentence2="天晴", label="neutral", id=1)
    digest = row_digest(one, task)
    assert digest == row_digest(row_of(task, sentence1="下雨了", sentence2="天晴\n", id=2), task)
    assert digest != row_digest(row_of(task, sentence1="天晴", sentence2="下雨了"), task)


@pytest.mark.parametrize("prefix", ["", "\ufeff"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_a_split_is_read_with_bom_and_any_line_end_and_keeps_its_line_numbers(tmp_path: Path, prefix: str, ending: str) -> None:
    task = task_from(tmp_path, PAIRS + "folder: ocnli\n")
    place = split_path(tmp_path, task, "dev_0")
    assert place == tmp_path / "ocnli" / "dev_0.json"
    place.parent.mkdir()
    rows = [json.dumps({"sentence1": s, "sentence2": "b", "label": "neutral"}) for s in ("甲", "乙")]
    place.write_bytes((prefix + ending.join([rows[0], "", rows[1], ""])).encode())
    assert [(row.texts["premise"], row.line) for row in read_split(tmp_path, task, "dev_0")] == [("甲", 1), ("乙", 3)]


def test_a_missing_split_is_named_with_its_root(tmp_path: Path) -> None:
    task = task_from(tmp_path, PAIRS)
    with pytest.raises(DataError) as caught:
        read_split(tmp_path, task, "test")
    assert str(tmp_path / "planted" / "test.json") in str(caught.value)
    assert f"data.root={tmp_path}" in str(caught.value)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "not valid JSON"),
        ("[]", "expected a JSON object"),
        ('{"sentence1": "a"}', "has no 'sentence2'"),
        ('{"sentence1": "a", "sentence2": null}', r"its 'sentence2' \(field 'hypothesis'\) is null"),
        ('{"sentence1": "a", "sentence2": "b", "label": "x"}', "label 'x'"),
    ],
)
def test_every_mistake_in_a_file_is_named_by_file_and_line(tmp_path: Path, line: str, reason: str) -> None:
    place = tmp_path / "bad.json"
    place.write_text('{"sentence1": "a", "sentence2": "b"}\n\n' + line)
    with pytest.raises(DataError, match=f"bad.json, line 3: {reason}"):
        list(read_rows(place, task_from(tmp_path, PAIRS)))


def test_numbers_as_labels_in_a_task_file_are_text(tmp_path: Path) -> None:
    tree = "label_tree: {甲: [0], 乙: [1]}\n"
    task = task_from(tmp_path, LISTS + tree)
    assert task.labels == ["0", "1"]
    assert task.label_tree == {"甲": ["0"], "乙": ["1"]}


def test_labels_keep_the_order_of_the_file(tmp_path: Path) -> None:
    assert task_from(tmp_path, PAIRS).labels == ["entailment", "neutral", "contradiction"]


def test_an_unknown_task_gets_a_suggestion_and_the_whole_list(tmp_path: Path) -> None:
    for name in ("tnews", "eprstmt"):
        (tmp_path / f"{name}.yaml").write_text("")
    with pytest.raises(ConfigError, match=r"unknown task 'tnew' \(did you mean 'tnews'\?\); there are: eprstmt, tnews"):
        load_task("tnew", [tmp_path, tmp_path / "nowhere"])


def test_the_first_directory_that_has_a_task_wins(tmp_path: Path) -> None:
    for place, text in (("mine", PAIRS), ("shipped", TREE)):
        (tmp_path / place).mkdir()
        task_from(tmp_path / place, text)
    assert load_task("planted", [tmp_path / "mine", tmp_path / "shipped"]).labels[0] == "entailment"
    assert load_task("planted", [tmp_path / "nowhere", tmp_path / "shipped"]).labels[0] == "a"


def test_a_mark_is_dropped_from_a_text_wherever_it_stands(tmp_path: Path) -> None:
    task = task_from(tmp_path, CLOZE.replace("fields: {", 'fields: {around: {path: more, drop: "#idiom#"}, '))
    row = row_of(task, content="他#idiom#了", more="他#idiom#了，#idiom#", candidates=["好"])
    assert row.texts == {"around": "他了，", "content": "他#idiom#了"}


@pytest.mark.parametrize("scale", ["0", "-1", ".nan", ".inf"])
def test_the_scale_of_an_ensemble_is_above_zero(tmp_path: Path, scale: str) -> None:
    with pytest.raises(ConfigError, match="ensemble_scale: .* is no factor|is no finite number"):
        task_from(tmp_path, f"ensemble_scale: {scale}\n" + CLOZE)


@pytest.mark.parametrize(
    ("prior", "words"),
    [
        ("{a: 0.5}", "label 'b' has no share"),
        ("{a: 0.5, b: 0.4, c: 0.1}", "unknown label 'c'"),
        ("{a: 0.0, b: 1.0}", "prior.a: 0 is no share above 0"),
        ("{a: 0.5, b: 0.6}", "sum to 1.1"),
    ],
)
def test_a_prior_has_a_share_for_every_label(tmp_path: Path, prior: str, words: str) -> None:
    text = "fields: {s: {path: s}}\nlabel_words: {a: A, b: B}\nprompts: {reference: {template: '{s}{label}'}}\n"
    assert task_from(tmp_path, f"{text}prior: {{a: 0.25, b: 0.75}}\n").shares() == [0.25, 0.75]
    with pytest.raises(ConfigError, match="prior") as caught:
        task_from(tmp_path, f"{text}prior: {prior}\n")
    assert words in str(caught.value)


def test_rows_with_candidates_of_their_own_have_no_prior(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="prior: rows bring candidates"):
        task_from(tmp_path, "prior: {a: 1.0}\n" + CLOZE)


def test_problems_of_the_schema_are_listed_together_by_path(tmp_path: Path) -> None:
    text = "fields: {a: {pth: x}}\nprompts: {reference: {template: 3}}\nlabel_word: {}\nshorten: a\n"
    with pytest.raises(ConfigError) as caught:
        task_from(tmp_path, text)
    message = str(caught.value)
    assert "planted.yaml" in message
    for problem in ("fields.a.path: missing", "fields.a.pth: unknown key", "prompts.reference.template: expected str"):
        assert problem in message
    assert "label_word: unknown key (did you mean 'label_words'?)" in message
    assert "shorten: expected a list" in message


def test_problems_between_settings_are_listed_together(tmp_path: Path) -> None:
    text = TREE + "reference: main\nshorten: [title]\n" + "submission_key: answer\n"
    text = text.replace('"{sentence}{label}"}', '"{sentence}{label}", label_words: {a: 一, b: 二}}')
    with pytest.raises(ConfigError) as caught:
        task_from(tmp_path, text)
    for problem in (
        "reference: there is no prompt 'main'",
        "shorten: there is no field 'title'",
        "prompts.reference.label_words: label 'c' has no label word",
    ):
        assert problem in str(caught.value)


def test_all_problems_of_a_label_tree_are_listed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        task_from(tmp_path, TREE.replace("{一: [a, b], 二: [c]}", "{一: [a, x], 二: [a, y]}"))
    for problem in (
        "label 'b' is in no group",
        "label 'c' is in no group",
        "unknown label 'x'",
        "unknown label 'y'",
        "label 'a' is in several groups",
    ):
        assert f"label_tree: {problem}" in str(caught.value)


def test_a_group_without_labels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="label_tree: group '三' has no labels"):
        task_from(tmp_path, TREE.replace("{一: [a, b], 二: [c]}", "{一: [a, b], 二: [c], 三: []}"))


def test_an_optional_text_with_a_blank_is_the_blank_alone_where_it_is_missing(tmp_path: Path) -> None:
    task = task_from(tmp_path, CLOZE.replace('blank: "#idiom#"', 'blank: "#idiom#", is_optional: true'))
    assert row_of(task, candidates=["画龙点睛"]).texts == {"content": "#idiom#"}


def test_a_task_without_labels_and_without_candidates_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="label_words: empty, and rows bring no candidates"):
        task_from(tmp_path, CLOZE.replace("candidates: candidates", ""))


def test_a_file_that_is_not_yaml_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"planted\.yaml, line 1: not valid YAML"):
        task_from(tmp_path, "fields: {a: [")


def test_a_key_that_stands_twice_is_refused_by_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"planted\.yaml, line \d+: not valid YAML \(key 'fields' stands twice"):
        task_from(tmp_path, PAIRS + "\nfields: {}\n")


@pytest.mark.parametrize("text", [PAIRS, NESTED, LISTS, CLOZE, TREE])
def test_a_task_comes_back_from_its_plain_form(tmp_path: Path, text: str) -> None:
    task = task_from(tmp_path, text)
    assert from_plain(TaskConfig, json.loads(json.dumps(to_plain(task))), "here") == task


@pytest.mark.parametrize("name", sorted(path.stem for path in TASKS.glob("*.yaml")))
def test_every_shipped_task_loads_and_its_prompts_are_ready(name: str, tokenizer: Tokenizer) -> None:
    task = load_task(name, [TASKS])
    assert task.name == name
    for prompt_name in task.prompts:
        prompt = Prompt(task, prompt_name, tokenizer, 96)
        criterion = get_criterion(prompt.criterion)
        scores_the_text_alone = criterion.form is LabelForm.CLM and Span.LABEL not in criterion.kinds
        assert scores_the_text_alone or not prompt.is_label_first, "a label before its text is not scored given the text"


def test_an_optional_field_does_not_change_a_rows_digest(tmp_path: Path) -> None:
    task = load_task("tnews", [TASKS])
    full, bare = row_of(task, sentence="标题", keywords="一,二"), row_of(task, sentence="标题")
    assert row_digest(full, task) == row_digest(bare, task)


SYNONYMS = """
fields: {sentence: {path: sentence}}
label_words: {a: 甲, b: 乙}
prompts: {reference: {template: "{sentence}{label}", synonyms: {b: [丙, 丁]}}}
"""


def test_synonyms_are_further_words_of_labels(tmp_path: Path, tokenizer: Tokenizer) -> None:
    task = task_from(tmp_path, SYNONYMS)
    assert task.synonyms_of("reference") == [("b", "丙"), ("b", "丁")]
    assert Prompt(task, "reference", tokenizer, 64).words(row_of(task, sentence="好")) == ["甲", "乙", "丙", "丁"]


@pytest.mark.parametrize(
    ("synonyms", "problem"),
    [("{c: [丙]}", "unknown label 'c'"), ("{b: []}", "empty list or word"), ("{b: ['']}", "empty list or word")],
)
def test_synonyms_must_fit_the_labels(tmp_path: Path, synonyms: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=f"prompts.reference.synonyms: .*{problem}"):
        task_from(tmp_path, SYNONYMS.replace("{b: [丙, 丁]}", synonyms))


def test_a_synonym_that_is_another_labels_word_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="labels 'a' and 'b' have the same word '甲'"):
        task_from(tmp_path, SYNONYMS.replace("[丙, 丁]", "[丙, 甲]"))


@pytest.mark.parametrize(
    ("column", "path"), [("Label", "label"), (" label", "label"), ("ｌａｂｅｌ", "label"), ("Sentence ", "sentence")]
)
def test_a_column_that_is_called_almost_right_is_refused(column: str, path: str) -> None:
    task = load_task("demo_reviews", [conf_dir() / "task"])
    record: dict[str, Any] = {"sentence": "好", "label": "Positive"}
    record[column] = record.pop(path)
    with pytest.raises(DataError, match=f"rows, line 3: has no '{path}', but '{column}'"):
        row_from(record, task, "rows", 3)


def test_an_id_may_be_written_in_other_letters() -> None:
    task = load_task("demo_reviews", [conf_dir() / "task"])
    assert row_from({"ID": 7, "sentence": "好"}, task, "rows", 3).id == 7
    assert row_from({"ID": 7, "id": 8, "sentence": "好"}, task, "rows", 3).id == 8
    assert row_from({"sentence": "好"}, task, "rows", 3).id == 2


@pytest.mark.parametrize(
    ("keys", "row_id"),
    [
        ({"id": "", "idx": 7}, 7),
        ({"id": " ", "ID": "a"}, "a"),
        ({"id": float("nan")}, 2),
        ({"id": "", "Idx": ""}, 2),
        ({"id": 0, "idx": 7}, 0),
    ],
)
def test_an_empty_id_is_none(keys: dict[str, Any], row_id: object) -> None:
    assert row_from({"sentence": "x", **keys}, load_task("demo_reviews", [TASKS]), "rows", 3, reads_label=False).id == row_id
