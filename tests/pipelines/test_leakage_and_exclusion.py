"""Evaluation texts are kept out of adaptation as `exclude_eval` says, also in other spelling, and counted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adapt.core.artifacts import open_artifact
from pipelines.config.locations import demo_dir
from tests.support.command_line import on_base, records

TASK = "demo_reviews"
RunHere = Callable[[str, list[str]], str]

PASSAGE = "这家餐厅的服务员态度特别好，上菜也很快，环境干净又安静，适合带家人来"  # longer than 24 characters
EVALUATION = {
    "dev": [f"{PASSAGE}吃饭。", "用了iPhone 15和AirPods，非常满意！"],
    "few": ["快递三天就到了，包装完好。"],
    "test": ["屏幕有坏点，客服ABC不理人。"],
}
# What unlabeled rows have of them: the same letters in other width, case and punctuation count as the same text.
LEAKS = {
    "dev": [f"{PASSAGE}吃饭。", "用了ｉＰｈｏｎｅ １５和ａｉｒｐｏｄｓ,非常满意!", "用了 IPHONE15 和 AirPods，非常满意"],
    "few": ["快递三天就到了,包装完好", "「快递三天就到了」，包装完好……"],
    "test": ["屏幕有坏点，客服ＡＢＣ不理人。", "屏幕有坏点，客服abc不理人"],
}
ONLY_SIMILAR = ["用了iPhone 14和AirPods，非常满意！", "快递五天就到了，包装完好。"]
SHARING = [f"朋友推荐来的，{PASSAGE}聚餐，就是有点贵。"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return a data root whose unlabeled rows begin with twenty of the demo's, then have evaluation texts in many spellings."""
    root = tmp_path / "clue" / TASK
    root.mkdir(parents=True)
    own = (demo_dir() / "clue" / TASK / "unlabeled.json").read_text(encoding="utf-8").splitlines()[:20]
    texts = [json.loads(line)["sentence"] for line in own]
    texts += [*LEAKS["dev"], *LEAKS["few"], *LEAKS["test"], *ONLY_SIMILAR, *SHARING]
    splits = {
        "unlabeled": [{"id": i, "sentence": text} for i, text in enumerate(texts)],
        "test": [{"id": i, "sentence": text} for i, text in enumerate(EVALUATION["test"])],
    }
    for split in ("dev", "few"):
        splits[split] = [{"id": i, "sentence": text, "label": "Positive"} for i, text in enumerate(EVALUATION[split])]
    for split, rows in splits.items():
        write_rows(root / f"{split}.json", rows)
    return root.parent


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def labelled_texts(data: Path, place: Path) -> list[str]:
    """Return the texts of the rows in labels.parquet, by their lines."""
    lines = (data / TASK / "unlabeled.json").read_text(encoding="utf-8").splitlines()
    found = records(place / "demo" / "pseudo_label" / TASK / "labels.parquet")
    return [json.loads(lines[record["line"] - 1])["sentence"] for record in found]


def metrics(place: Path) -> dict[str, Any]:
    return dict(open_artifact((place / "demo" / "pseudo_label" / TASK).resolve()).metrics)


@pytest.mark.parametrize(
    ("setting", "excluded"),
    [
        ([], ["dev", "few"]),
        (["exclude_eval=dev"], ["dev", "few"]),
        (["exclude_eval=none"], []),
        (["exclude_eval=all"], list(LEAKS)),
    ],
)
def test_evaluation_texts_are_kept_out_as_asked_in_any_spelling(
    setting: list[str], excluded: list[str], data: Path, smallest_run: Path, tmp_path: Path, run_here: RunHere
) -> None:
    text = run_here("pseudo_label", [*on_base(smallest_run, tmp_path, TASK), f"data.root={data}", *setting])
    found = labelled_texts(data, tmp_path)
    for split, leaks in LEAKS.items():
        assert [leak for leak in leaks if leak in found] == ([] if split in excluded else leaks)
    for kept in [*ONLY_SIMILAR, *SHARING]:
        assert kept in found
    count = sum(len(LEAKS[split]) for split in excluded)
    assert len(found) == 30 - count
    assert metrics(tmp_path)["excluded"] == count
    assert metrics(tmp_path)["rows"] == 30 - count
    assert f"{count} left out as evaluation texts" in text


def test_rows_that_only_share_a_passage_are_kept_and_counted(
    data: Path, smallest_run: Path, tmp_path: Path, run_here: RunHere
) -> None:
    text = run_here("pseudo_label", [*on_base(smallest_run, tmp_path, TASK), f"data.root={data}"])
    assert metrics(tmp_path)["sharing_a_passage"] == 1
    assert "1 share a passage with evaluation texts" in text
    text = run_here("pseudo_label", [*on_base(smallest_run, tmp_path, TASK), f"data.root={data}", "exclude_eval=none"])
    assert "share a passage" not in text


def test_calibration_is_fitted_without_evaluation_texts(data: Path, smallest_run: Path, tmp_path: Path, run_here: RunHere) -> None:
    lines = (data / TASK / "unlabeled.json").read_text(encoding="utf-8").splitlines()
    for setting, splits in (("dev", ["dev", "few"]), ("all", list(LEAKS))):
        arguments = [*on_base(smallest_run, tmp_path, TASK), f"data.root={data}", f"exclude_eval={setting}"]
        run_here("evaluate", arguments)
        link = tmp_path / "demo" / "score" / TASK / "unlabeled-pretrain" / "scores.parquet"
        fitted_on = {json.loads(lines[record["line"] - 1])["sentence"] for record in records(link)}
        leaks = {leak for split in splits for leak in LEAKS[split]}
        assert not fitted_on & leaks
        assert len(fitted_on) == 30 - len(leaks)


def test_excluded_rows_do_not_count_towards_the_most_rows(
    data: Path, smallest_run: Path, tmp_path: Path, run_here: RunHere
) -> None:
    path = data / TASK / "unlabeled.json"
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join(reversed(lines)) + "\n", encoding="utf-8")  # evaluation texts stand first
    run_here("pseudo_label", [*on_base(smallest_run, tmp_path, TASK), f"data.root={data}", "pseudo_label.max_rows=12"])
    assert len(labelled_texts(data, tmp_path)) == 12


def test_a_new_evaluation_text_is_kept_out_the_next_time(data: Path, smallest_run: Path, tmp_path: Path, run_here: RunHere) -> None:
    arguments = [*on_base(smallest_run, tmp_path, TASK), f"data.root={data}"]
    run_here("pseudo_label", arguments)
    assert ONLY_SIMILAR[0] in labelled_texts(data, tmp_path)
    with (data / TASK / "dev.json").open("a", encoding="utf-8") as stream:
        stream.write(json.dumps({"id": 9, "sentence": ONLY_SIMILAR[0], "label": "Negative"}, ensure_ascii=False) + "\n")
    assert "skipped" not in run_here("pseudo_label", arguments)
    assert ONLY_SIMILAR[0] not in labelled_texts(data, tmp_path)
    assert metrics(tmp_path)["excluded"] == 6


def test_noise_is_estimated_on_the_labels_of_today(data: Path, smallest_run: Path, tmp_path: Path, run_here: RunHere) -> None:
    arguments = [*on_base(smallest_run, tmp_path, TASK), f"data.root={data}", "exclude_eval=none"]
    found = []
    for label in ("Positive", "Negative"):
        for split in ("dev", "few"):
            rows = [{"id": i, "sentence": text, "label": label} for i, text in enumerate(EVALUATION[split])]
            write_rows(data / TASK / f"{split}.json", rows)
        run_here("pseudo_label", [*arguments, "pseudo_label.selection.share=1"])
        found.append(metrics(tmp_path)["labelled"])
    assert found[0]["n"] == found[1]["n"] > 0
    assert found[0]["accuracy"] + found[1]["accuracy"] == pytest.approx(1)
