"""Task files: labels stay what was typed, mistakes in prompts and words are found on loading, and hostile files are one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapt.core.errors import ConfigError
from pseudo_label.task_checks import unread_fields
from pseudo_label.tasks import TaskConfig, load_task

TASK = """
fields: {s: {path: s}}
label_words: {a: 甲, b: 乙}
prompts: {reference: {template: "{s}，{label}"}}
"""


def load(tmp_path: Path, text: str, name: str = "mine") -> TaskConfig:
    (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
    return load_task(name, [tmp_path])


def refusal(tmp_path: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'mine.yaml'}") and "\n" not in message
    return message


KEYS = [
    "00",
    "010",
    "1:30",
    ".5",
    "~",
    "yes",
    "no",
    "true",
    "True",
    "null",
    "1_000",
    "0x10",
    "2024-01-02",
    "1e3",
    ".nan",
    "=",
    "on",
]


@pytest.mark.parametrize("quote", ["", "'", '"'])
def test_keys_and_words_stay_what_was_typed(tmp_path: Path, quote: str) -> None:
    words = ", ".join(f"{quote}{key}{quote}: w{n}" for n, key in enumerate(KEYS))
    assert load(tmp_path, TASK.replace("a: 甲, b: 乙", words)).labels == KEYS
    lines = "\n".join(f"  w{n}: {quote}{key}{quote}" for n, key in enumerate(KEYS))
    task = load(tmp_path, TASK.replace("label_words: {a: 甲, b: 乙}", f"label_words:\n{lines}"))
    assert list(task.label_words.values()) == KEYS


def test_label_trees_synonyms_and_words_of_prompts_stay_what_was_typed_too(tmp_path: Path) -> None:
    text = """
fields: {s: {path: s}}
label_words: {010: 甲, yes: 乙}
label_tree: {00: [010], no: [yes]}
ensemble: [1]
prompts:
  reference: {template: "{s}{label}"}
  1: {template: "{s}，{label}", label_words: {010: on, yes: off}, synonyms: {yes: [1:30, ~]}}
"""
    task = load(tmp_path, text)
    assert task.label_tree == {"00": ["010"], "no": ["yes"]}
    assert task.prompts["1"].label_words == {"010": "on", "yes": "off"}
    assert task.prompts["1"].synonyms == {"yes": ["1:30", "~"]}
    assert task.ensemble == ["1"]


@pytest.mark.parametrize("words", ["{1: a, '1': b}", "{yes: a, 'yes': b}", "{a: x, a: y}"])
def test_a_label_that_stands_twice_is_refused(tmp_path: Path, words: str) -> None:
    message = refusal(tmp_path, TASK.replace("{a: 甲, b: 乙}", words))
    assert "line 3: not valid YAML (key '" in message and "stands twice" in message


def test_settings_that_are_no_text_keep_their_types(tmp_path: Path) -> None:
    text = TASK.replace("{s: {path: s}}", "{s: {path: s, is_optional: true, blank: null}}")
    task = load(tmp_path, text + "ensemble_scale: 2\nencoding: ~\nlabel_tree: null\nensemble: ~\n")
    assert (task.label_tree, task.ensemble) == (None, None)
    assert (task.fields["s"].is_optional, task.fields["s"].blank, task.ensemble_scale, task.encoding) == (True, None, 2.0, None)


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{sentense}{label}", "unknown field 'sentense' (did you mean 'sentence'?); there are: sentence"),
        ("{sentence}{lable}", "unknown field 'lable' (did you mean 'label'?)"),
        ("{sentence:.20}{label}", "'{sentence:.20}': a field is put in as it is; write '{sentence}'"),
        ("{sentence!r}{label}", "'{sentence!r}': a field is put in as it is"),
        ("{sentence}{label:>5}", "'{label:>5}'"),
        ("sentence，{label}", "has no text of the row; write a field in braces ({sentence})"),
        ("{sentence}", "needs exactly one place for the label, has 0"),
        ("{label}{sentence}{label}", "needs exactly one place for the label, has 2"),
        ("{sentence}{label", "expected '}' before end of string"),
        ("{sentence} } {label}", "Single '}' encountered"),
        ("{}{label}", "unknown field ''"),
        ("{0}{label}", "unknown field '0'"),
        ("{sentence.x}{label}", "unknown field 'sentence.x'"),
        ("{sentence[0]}{label}", "unknown field 'sentence[0]'"),
    ],
)
def test_templates_are_checked_on_loading(tmp_path: Path, template: str, problem: str) -> None:
    text = TASK.replace("{s: {path: s}}", "{sentence: {path: s}}").replace("{s}，{label}", template)
    message = refusal(tmp_path, text)
    assert "prompts.reference.template: " in message and problem in message


def test_a_label_is_no_text_and_a_blank_is_a_mark(tmp_path: Path) -> None:
    assert "label_path: 's' is the text of field 's'" in refusal(tmp_path, f"{TASK}label_path: s\n")
    text = TASK.replace("{s: {path: s}}", "{s: {path: s, blank: ''}}")
    assert "fields.s.blank: is empty; give the mark that the label fills" in refusal(tmp_path, text)


def test_fields_that_no_prompt_reads_are_known(tmp_path: Path) -> None:
    task = load(tmp_path, TASK.replace("{s: {path: s}}", "{s: {path: s}, more: {path: m}}"))
    assert unread_fields(task) == ["more"]


def test_braces_that_are_text_are_doubled(tmp_path: Path) -> None:
    assert load(tmp_path, TASK.replace("{s}，{label}", "{{{s}}}，{label}"))


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("b: 乙", "b: ''", "label_words: label 'b' has an empty label word"),
        ("b: 乙", "b: ' '", "label_words: label 'b' has an empty label word"),
        ("b: 乙", "b:", "label_words: label 'b' has an empty label word"),
        ("b: 乙", "b: 甲", "label_words: labels 'a' and 'b' have the same word '甲'"),
        ("b: 乙", "'': 乙", "label_words: a label has no name"),
        (
            '{label}"',
            '{label}", label_words: {a: 好, b: 好}',
            "prompts.reference.label_words: labels 'a' and 'b' have the same word",
        ),
        ('{label}"', '{label}", label_words: {a: 好, b: ""}', "prompts.reference.label_words: label 'b' has an empty label word"),
        ('{label}"', '{label}", label_words: {a: 好, b: 坏, B: 差}', "prompts.reference.label_words: unknown label 'B'"),
        ('{label}"', '{label}", synonyms: {b: [甲]}', "prompts.reference.synonyms: labels 'a' and 'b' have the same word"),
        ('{label}"', '{label}", synonyms: {b: [" "]}', "prompts.reference.synonyms: label 'b' has an empty list or word"),
    ],
)
def test_words_that_cannot_tell_labels_apart_are_refused_on_loading(tmp_path: Path, old: str, new: str, problem: str) -> None:
    assert problem in refusal(tmp_path, TASK.replace(old, new))


def test_a_word_of_two_labels_is_said_once_where_a_prompt_has_synonyms(tmp_path: Path) -> None:
    text = TASK.replace("b: 乙", "b: 甲").replace('{label}"', '{label}", synonyms: {b: [丙]}')
    assert refusal(tmp_path, text).count("have the same word") == 1


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n"
BOMB += "".join(f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: &x [*x]", "refers to itself"),
        ("a: " + "[" * 5000, "nested too deeply"),
        ("a: " + "[" * 60 + "]" * 60, "nested too deeply"),
        (BOMB, "aliases"),
        ("a: {<<: {b: 1}}", "<< is not read here"),
        ("? [a, b]\n: c", "a key is a list"),
        ("a: !!python/object/apply:os.system [ls]", "not valid YAML"),
        ("a: 1\n---\nb: 2", "not valid YAML"),
        ("a: \x01", "not valid YAML"),
        ("a: 2024-99-99", "not valid YAML"),
        ("a: " + "9" * 5000, "not valid YAML"),
        ("- a", "expected a mapping"),
        ("", "expected a mapping"),
        ("a: [", "line 1: not valid YAML"),
    ],
)  # fmt: skip
def test_a_hostile_or_broken_file_is_one_line(tmp_path: Path, text: str, problem: str) -> None:
    assert problem in refusal(tmp_path, text)


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ("name: ../other", "name: '../other' is no plain name"),
        ("name: ''", "name: '' is no plain name"),
        ("folder: ../other", "folder: '../other' leads out of data.root"),
        ("folder: /etc", "folder: '/etc' leads out of data.root"),
        ("submission_file: ../x.json", "submission_file: '../x.json' is no plain name"),
        ("encoding: utf9", "encoding: 'utf9' is not a text encoding"),
    ],
)
def test_names_lead_nowhere_else(tmp_path: Path, more: str, problem: str) -> None:
    assert problem in refusal(tmp_path, TASK + more + "\n")


@pytest.mark.parametrize("name", ["../mine", "a/b", "", "."])
def test_a_tasks_name_is_no_path(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="task: .* is no plain name"):
        load_task(name, [tmp_path])


def test_a_file_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_bytes("label_words: {a: 甲}".encode("gbk"))
    with pytest.raises(ConfigError, match=r"mine\.yaml: not UTF-8"):
        load_task("mine", [tmp_path])
