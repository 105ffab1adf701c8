"""The command `init`: what it guesses, asks, refuses and writes; and, slowly, that all of it runs up to labelled rows."""

from __future__ import annotations

import csv
import json
import random
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from adapt.core.errors import AdaptError, ConfigError
from pipelines.command_line.plain_options import parsed, run_plainly
from pipelines.tools import init, init_files
from pipelines.tools.init import InitConfig
from pipelines.tools.init_answers import Terminal
from pseudo_label.columns import guess_label, guess_texts, survey
from pseudo_label.leakage import plain_text
from pseudo_label.tasks import TaskConfig, load_task, read_split
from tests.support.command_line import composed, run

GOOD = ["物流很快", "做工精细", "客服很耐心", "穿着舒服", "味道不错"]
BAD = ["包装都破了", "线头很多", "客服不理人", "半天就没电", "有股怪味"]
WORDS = "labels={0: [差评, 失望, 退货], 1: [好评, 推荐, 舒服]}"


def reviews(n: int, *, labelled_every: int = 2) -> list[dict[str, str]]:
    """Return made-up reviews; every second or so has a label."""
    draw, rows = random.Random(3), []
    for number in range(n):
        label = number % 3 == 0
        text = f"第{number}次买，{draw.choice(BAD if label else GOOD)}，{'失望' if label else '推荐'}。"
        rows.append(
            {"order": str(900 + number), "review": text, "stars": str(int(not label)) if number % labelled_every == 0 else ""}
        )
    return rows


def table(place: Path, rows: Sequence[dict[str, str]]) -> Path:
    with place.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return place


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    table(tmp_path / "reviews.csv", reviews(90))
    return tmp_path


class Person(Terminal):
    """A person at a terminal who answers in turn, and notes what was said."""

    def __init__(self, *answers: str) -> None:
        self.answers = list(answers)
        self.heard: list[str] = []

    @property
    def is_there(self) -> bool:
        return True

    def say(self, text: str) -> None:
        self.heard.append(text)

    def ask(self, question: str, default: str = "") -> str:
        self.heard.append(f"{question} [{default}]")
        return self.answers.pop(0) or default


class Nobody(Terminal):
    """No terminal."""

    @property
    def is_there(self) -> bool:
        return False


def made(*words: str, person: Terminal | None = None) -> int:
    return init.main(parsed(InitConfig, list(words)), person or Nobody())


def refusal(*words: str) -> str:
    with pytest.raises(AdaptError) as caught:
        made(*words)
    return str(caught.value)


def rows_in(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def own(name: str) -> TaskConfig:
    return load_task(name, [Path("mytasks")])


def commands(out: str) -> list[list[str]]:
    return [shlex.split(line.strip()) for line in out.splitlines() if line.startswith("  python -m")]


@pytest.mark.parametrize(
    ("records", "texts", "label"),
    [
        (reviews(20), ["review"], "stars"),
        ([{"q1": f"怎么退{i}", "q2": f"如何退{i}", "same": i % 2} for i in range(8)], ["q1", "q2"], "same"),
        ([{"premise": f"It rains {i}", "hypothesis": f"It is wet {i}", "gold": ["yes", "no"][i % 2]} for i in range(8)],
         ["premise", "hypothesis"], "gold"),
        ([{"id": i, "url": f"https://a.org/a/long/{i}", "meta": {"body": f"球队赢{i}"}} for i in range(8)], ["meta.body"], None),
        ([{"a": str(i), "b": str(i * 7)} for i in range(8)], [], None),
        ([{"text": f"好{i}", "price": i, "kind": "衣服鞋子"[i % 2 * 2 :][:2]} for i in range(8)], ["text"], "kind"),
    ],
)  # fmt: skip
def test_columns_are_guessed_by_their_names_and_by_what_is_in_them(
    records: list[dict[str, Any]], texts: list[str], label: str | None
) -> None:
    found = survey(records)
    assert guess_texts(found) == texts
    assert guess_label(found, texts) == label


def test_what_is_written_loads_and_the_printed_command_composes(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert made("data=reviews.csv", "text=review", "label=stars", WORDS) == 0
    out = capsys.readouterr().out
    task = own("reviews")
    assert task.label_words == {"0": "差评", "1": "好评"}
    assert list(task.prompts) == ["reference", "about", "label_first"]
    assert task.prompts["about"].synonyms == {"0": ["失望", "退货"], "1": ["推荐", "舒服"]}
    (walk, predict) = commands(out)
    assert walk[:3] == ["python", "-m", "pipelines.run"]
    config = composed("run", walk_words(walk))
    assert (config.tasks, config.task_dir, config.data.root, config.run.name) == (["reviews"], "mytasks", "mydata", "reviews")
    assert config.checkpoint is not None and Path(config.checkpoint).is_dir()
    assert predict[3:] == ["checkpoint=runs/reviews/export/reviews", "input=reviews.csv", "output=reviews_labelled.csv"]
    composed("predict", predict[3:])


def walk_words(command: list[str]) -> list[str]:
    """Return the words of a walk's command as `composed` takes them."""
    return [f"tasks=[{word.partition('=')[2]}]" if word.startswith("task=") else word for word in command[3:]]


def test_evaluation_rows_keep_their_labels_and_their_texts_are_in_no_other_file(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = reviews(90)
    rows += [{**row, "review": row["review"].replace("，", "， "), "stars": ""} for row in rows[:40]]  # in other spelling
    rows += [{"order": "x", "review": " ", "stars": "1"}]
    table(place / "reviews.csv", rows)
    made("data=reviews.csv", "text=review", "label=stars", WORDS)
    dev, unlabeled = read_split(Path("mydata"), own("reviews"), "dev"), rows_in(Path("mydata/reviews/unlabeled.jsonl"))
    assert len(dev) == 43  # a third of the 130 with text
    labels = {row["review"]: row["stars"] for row in rows if row["stars"]}
    assert all(row.label == labels[row.texts["text"]] for row in dev)
    assert all(set(row) == {"id", "review"} for row in unlabeled)
    kept_out = {plain_text(row.texts["text"]) for row in dev}
    assert not kept_out & {plain_text(row["review"]) for row in unlabeled}
    excluded = sum(plain_text(row["review"]) in kept_out for row in rows if row["review"].strip()) - len(dev)
    assert excluded > 0
    assert len(unlabeled) == 130 - 43 - excluded
    said = capsys.readouterr().out.splitlines()[0]
    assert f"{len(unlabeled)} rows in unlabeled, 43 in dev" in said
    assert f"{excluded} left out, whose texts are in dev, 1 left out, without text" in said
    again = {file.name: file.read_bytes() for file in Path("mydata/reviews").iterdir()}
    made("data=reviews.csv", "text=review", "label=stars", WORDS, "root=other", "task_dir=other")
    assert {file.name: file.read_bytes() for file in Path("other/reviews").iterdir()} == again


def test_without_labels_some_rows_are_kept_to_look_at(place: Path) -> None:
    made("data=reviews.csv", "text=review", "label=none", "labels=[差评, 好评]")
    assert sorted(path.name for path in Path("mydata/reviews").iterdir()) == ["test.jsonl", "unlabeled.jsonl"]
    assert len(rows_in(Path("mydata/reviews/test.jsonl"))) == 9
    assert own("reviews").labels == ["差评", "好评"]


def test_without_labels_no_column_is_taken_for_them_whatever_it_is_called(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table(place / "other.csv", [{"review": row["review"], "label": str(number % 3)} for number, row in enumerate(reviews(60))])
    made("data=other.csv", "text=review", "label=none", "labels=[差评, 好评]")
    assert sorted(path.name for path in Path("mydata/other").iterdir()) == ["test.jsonl", "unlabeled.jsonl"]
    assert "6 in test, without labels" in capsys.readouterr().out


def written_ids() -> dict[str, Any]:
    """Return the id of each row that was written, by its text."""
    return {row["review"]: row["id"] for file in Path("mydata/own").iterdir() for row in rows_in(file)}


def test_rows_keep_the_ids_of_the_file(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"ID": str(number), **row} for number, row in enumerate(reviews(60))]
    table(place / "own.csv", [*rows, {**rows[0], "ID": "", "review": " "}])  # without text it is left out, with or without an id
    made("data=own.csv", "text=review", "label=stars", WORDS)
    ids = written_ids()
    assert len(ids) >= 50 and ids == {row["review"]: row["ID"] for row in rows if row["review"] in ids}
    assert "ids are" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("ids", "says"),
    [(["7", "7", "8"], "2 rows have the id '7'"), (["7", "", "8"], "1 rows have none"), (None, "no row has one (column id or")],
)
def test_rows_are_numbered_where_ids_cannot_be_kept_which_is_said(
    ids: list[str] | None, says: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{} if ids is None else {"id": (ids + list("abcdefghijklmnopq"))[number]} for number in range(20)]
    table(place / "own.csv", [{**own_id, **row} for own_id, row in zip(rows, reviews(20), strict=True)])
    made("data=own.csv", "text=review", "label=stars", WORDS)
    assert f"ids are row numbers from 1, since {says}" in capsys.readouterr().out.splitlines()[0]
    assert set(written_ids().values()) <= set(range(1, 21))


def test_a_column_of_labels_or_texts_that_is_called_id_is_refused(place: Path) -> None:
    table(place / "own.csv", [{"id": row["stars"], "review": row["review"]} for row in reviews(30)])
    assert "label=id: rows have their ids under this name" in refusal("data=own.csv", "text=review", "label=id", WORDS)
    assert "text=id: rows have their ids under this name" in refusal("data=own.csv", "text=id", "label=none", "labels=[差评, 好评]")


def test_minus_one_beside_0_and_1_is_offered_as_a_label_and_is_said_where_it_has_no_word(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"review": row["review"], "stars": str(number % 3 - 1)} for number, row in enumerate(reviews(60))]
    table(place / "own.csv", rows)
    assert "'labels={-1: WORD, 0: WORD, 1: WORD}'" in refusal("data=own.csv", "text=review", "label=stars")
    made("data=own.csv", "text=review", "label=stars", WORDS)
    note = "note: 20 rows have '-1' in 'stars', which counts as no label unless labels= gives it a word"
    assert note in capsys.readouterr().out.splitlines()
    made("data=own.csv", "text=review", "label=stars", "labels={-1: 差评, 0: 一般, 1: 好评}", "task=three")
    assert {row["stars"] for row in rows_in(Path("mydata/three/dev.jsonl"))} == {"-1", "0", "1"}
    assert "note:" not in capsys.readouterr().out
    person = Person("review", "stars", "none", "一般", "好评")
    made("data=own.csv", "task=two", person=person)
    assert own("two").labels == ["0", "1"]


def test_english_words_bring_their_space_and_titles_a_full_stop(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table(place / "news.csv", [{"title": f"Team number {i} wins again", "topic": ["sports", "food"][i % 2]} for i in range(12)])
    made("data=news.csv", "text=title", "label=topic", "labels={sports: sports, food: food}")
    task = own("news")
    assert task.label_words == {"sports": " sports", "food": " food"}
    assert task.prompts["reference"].template == "{text}. All in all, this is about:{label}"
    assert task.prompts["label_first"].label_words == {"sports": "sports", "food": "food"}
    said = capsys.readouterr().out
    assert "without the space" not in said and "three prompts in English" in said
    assert "no synonyms yet" in said


def test_pairs_have_prompts_for_two_texts_and_a_rule_where_a_label_means_alike(place: Path) -> None:
    table(place / "pairs.csv", [{"a": f"怎么退{i}", "b": f"如何退{i}", "same": str(i % 2)} for i in range(12)])
    made("data=pairs.csv", "text=[a, b]", "label=same", "labels={0：不同，1：相同}", "alike=1")
    task = own("pairs")
    assert [spec.path for spec in task.fields.values()] == ["a", "b"]
    assert task.label_words == {"0": "不同", "1": "相同"}
    assert task.rules[0].weights == {"0": -1.0, "1": 1.0}
    assert read_split(Path("mydata"), task, "unlabeled")[0].texts.keys() == {"text1", "text2"}


def test_a_person_is_shown_the_columns_and_asked_for_what_no_flag_says(place: Path) -> None:
    person = Person("reveiw", "", "", "", "差评，失望", "好评")
    made("data=reviews.csv", person=person)
    shown, text, mistake, _, label, *words = person.heard
    assert "90 rows" in shown and "stars   0 (15), 1 (30)   (45 empty)" in shown
    assert text.endswith("[review]") and label.endswith("[stars]")
    assert "has no column 'reveiw' (did you mean 'review'?)" in mistake
    assert words[1:] == ["Words for '0' []", "Words for '0' []", "Words for '1' []"]
    assert own("reviews").prompts["about"].synonyms == {"0": ["失望"]}


def test_without_a_terminal_one_line_names_the_missing_flags(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["pipelines.init", "data=reviews.csv"])
    assert run_plainly(InitConfig, init.main, "") == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == (
        "error: reviews.csv: nobody can be asked without a terminal; give text=review label=stars 'labels={0: WORD, 1: WORD}' "
        "(columns: order, review, stars)\n"
    )
    assert [path.name for path in place.iterdir()] == ["reviews.csv"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["data=none.csv"], "none.csv: no such file"),
        (["data=reviews.csv", "text=rev"], "text: reviews.csv has no column 'rev' (did you mean 'review'?)"),
        (["data=reviews.csv", "text=[review, order, stars]"], "give one column, or two different ones"),
        (["data=reviews.csv", "label=review"], "is a column of texts"),
        (["data=reviews.csv", "label=order"], "labels: column 'order' of reviews.csv has '900'"),
        (["data=reviews.csv", "labels={0: 差评, 2: 好评}"], "has '1' in 30 rows, and label '1' has no label word"),
        (["data=reviews.csv", "labels={0: 差评, 1: 差评}"], "have the word '差评' in common"),
        (["data=reviews.csv", "labels={0: 差评, 0: 好评}"], "label '0' stands twice"),
        (["data=reviews.csv", "labels={0: , 1: 好评}"], "label '0' has no word"),
        (["data=reviews.csv", "labels={0: 差评"], "cannot be read"),
        (["data=reviews.csv", "labels=差评"], "is no list of classes"),
        (["data=reviews.csv", "labels=[好评]"], "needs at least two classes"),
        (["data=reviews.csv", "alike=1"], "is for pairs of texts"),
        (["data=reviews.csv", "task=a/b"], "task: 'a/b' is no plain name"),
        (["data=reviews.csv", "dev_rows=0"], "dev_rows: 0 is less than 1"),
        (["data=reviews.csv", "dev_rows=10", "checkpoint=none"], "none: no such directory"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(place: Path, words: list[str], says: str) -> None:
    given = {word.partition("=")[0] for word in words}
    usual = {"text": "text=review", "label": "label=stars", "labels": WORDS}
    assert says in refusal(*words, *(word for key, word in usual.items() if key not in given))
    assert [path.name for path in place.iterdir()] == ["reviews.csv"]


def test_labels_with_spaces_around_them_say_what_to_do_before_anybody_is_asked_for_words(place: Path) -> None:
    rows = [{**row, "stars": f"{row['stars']} "} if number == 0 and row["stars"] else row for number, row in enumerate(reviews(60))]
    table(place / "reviews.csv", rows)
    says = "label=stars: reviews.csv has labels with spaces around them in 1 rows ('0 '); take them out of the file"
    assert says in refusal("data=reviews.csv", "text=review", "label=stars", WORDS)
    assert says in refusal("data=reviews.csv", "text=review")
    person = Person("", "")
    with pytest.raises(AdaptError) as caught:
        made("data=reviews.csv", person=person)
    assert says in str(caught.value)
    assert not person.answers and not any("Words for" in heard for heard in person.heard)


@pytest.mark.parametrize("n_rows", [40, 90, 100, 300, 1000, 3000])
def test_the_printed_command_trains_a_small_file_for_enough_steps(
    n_rows: int, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table(place / "reviews.csv", reviews(n_rows))
    made("data=reviews.csv", "text=review", "label=stars", WORDS)
    out = capsys.readouterr().out
    config = composed("run", walk_words(commands(out)[0]))
    n_unlabeled = len(rows_in(Path("mydata/reviews/unlabeled.jsonl")))
    n_held_out = round(config.pseudo_label.held_out_share * n_unlabeled)
    n_selected = round(config.pseudo_label.selection.share * (n_unlabeled - n_held_out))
    epochs = config.continue_pretrain.epochs or 2.0
    assert epochs * n_selected / config.continue_pretrain.batch_rows >= 20
    assert epochs <= 20
    assert (f"{n_unlabeled:,} rows to adapt on is too little" in out) == (n_unlabeled < 200)


def test_words_that_the_base_cannot_tell_apart_are_refused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.support.planted_tokenizers import LongestMatch

    monkeypatch.setattr(init, "tokenizer_of", lambda _: LongestMatch("god", fold=str.lower))
    said = refusal("data=reviews.csv", "text=review", "label=stars", "labels={0: Good, 1: good}")
    assert "have the same tokens" in said
    assert [path.name for path in place.iterdir()] == ["reviews.csv"]


def test_nothing_is_overwritten_and_a_kill_between_rows_and_task_is_made_good(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("data=reviews.csv", "text=review", "label=stars", WORDS)
    with monkeypatch.context() as patch:
        patch.setattr(init_files.os, "link", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            made(*words)
    assert not Path("mytasks/reviews.yaml").exists()
    assert sorted(path.name for path in Path("mydata").iterdir()) == ["reviews"]
    assert "mydata/reviews: is there already" in refusal(*words, "seed=5")
    made(*words)
    assert Path("mytasks/reviews.yaml").is_file()
    assert "mytasks/reviews.yaml: is there already" in refusal(*words)
    Path("mydata/more").mkdir()
    table(Path("mydata/more/unlabeled.csv"), [{"text": "好"}])
    assert "mydata/more: is there already" in refusal(*words, "task=more")
    assert sorted(path.name for path in Path("mydata/more").iterdir()) == ["unlabeled.csv"]


def test_rows_that_fail_to_be_written_leave_nothing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(init_files.os, "fsync", full)
    with pytest.raises(ConfigError, match="cannot be written"):
        made("data=reviews.csv", "text=review", "label=stars", WORDS)
    assert not list(Path("mydata").iterdir())
    assert not Path("mytasks").exists()


@pytest.mark.slow
def test_from_a_table_to_labelled_rows(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made("data=reviews.csv", "text=review", "label=stars", WORDS)
    walk, predict = commands(capsys.readouterr().out)
    places = [f"run.dir={place}/runs", f"task_dir={place}/mytasks", f"data.root={place}/mydata"]
    words = [word for word in walk[3:] if word.partition("=")[0] not in ("task_dir", "data.root")]
    done = run("run", *words, *places)
    assert done.returncode == 0, done.stderr
    assert "reviews: " in done.stdout and "steps are few" not in done.stdout
    assert f"export: {place}/runs/reviews/export/reviews" in done.stdout + done.stderr
    export = [f"checkpoint={place}/{predict[3].partition('=')[2]}", f"input={place}/reviews.csv", f"output={place}/labelled.csv"]
    done = run("predict", *export, f"run.dir={place}/runs")
    assert done.returncode == 0, done.stderr
    with (place / "labelled.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 90
    assert {row["prediction"] for row in rows} == {"0", "1"}
    right = [row["prediction"] == str(int(number % 3 != 0)) for number, row in enumerate(rows)]
    assert sum(right) > 60  # far above the larger class by chance
