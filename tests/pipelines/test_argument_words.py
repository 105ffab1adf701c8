"""Values on the command line are what was typed, flags may stand anywhere, and an unknown key suggests the nearest one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from adapt.core.typed import to_plain
from pipelines.command_line import compose
from pipelines.command_line.argument_words import as_typed, flags_first, point_name
from pipelines.config.described import text_keys
from pipelines.config.schema import PipelineConfig
from tests.support.command_line import in_process, refused

Patch = pytest.MonkeyPatch
Capture = pytest.CaptureFixture[str]
HARD = "/数据 库/a=b, c(1)[2]{3}/它's:100%~x"
TEXTS = [
    path
    for path, is_list in text_keys().items()
    if not is_list and path not in ("model.path", "data.encoding", "tracker.mode", "corpus.ray.address")
]
LISTS = [path for path, is_list in text_keys().items() if is_list]


def composed_from(words: list[str], monkeypatch: Patch, command: str = "evaluate") -> list[Any]:
    """Return the configurations that a command line comes to, as plain values: one, or one for each point of a sweep."""
    from hydra.core.global_hydra import GlobalHydra

    found: list[Any] = []

    def keep(config: PipelineConfig, point: str | None) -> None:
        found.append(to_plain(config))

    GlobalHydra.instance().clear()
    monkeypatch.setattr(sys, "argv", [f"pipelines.{command}", *words])
    with pytest.raises(SystemExit) as left:
        compose.main(command, keep)
    assert not left.value.code
    return found


def at(config: Any, path: str) -> Any:
    for part in path.split("."):
        config = config[part]
    return config


def test_every_text_is_taken_as_it_is_typed(monkeypatch: Patch) -> None:
    monkeypatch.setattr(compose, "check_hosts", lambda engine: None)
    hard = {path: HARD.lstrip("/") if path == "run.name" else HARD for path in TEXTS}  # a run's name is below run.dir
    (config,) = composed_from([f"{path}={text}" for path, text in hard.items()], monkeypatch)
    assert {path: at(config, path) for path in TEXTS} == hard
    assert len(TEXTS) > 20
    (config,) = composed_from([f"{path}=2024" for path in TEXTS], monkeypatch)
    assert {at(config, path) for path in TEXTS} == {"2024"}
    (config,) = composed_from(["model=hf", f"model.path={HARD}"], monkeypatch)
    assert config["model"]["path"] == HARD


def test_every_list_of_texts_takes_its_items_as_they_are_typed(monkeypatch: Patch) -> None:
    items = ["/数据 库/a=b(1)", "2024", "/c,d"]
    (config,) = composed_from([f"{path}=[{items[0]}, {items[1]},'{items[2]}']" for path in LISTS], monkeypatch)
    assert {path: at(config, path) for path in LISTS} == dict.fromkeys(LISTS, items)
    (config,) = composed_from([f"{path}={HARD}" for path in LISTS], monkeypatch)
    assert {path: at(config, path) for path in LISTS} == dict.fromkeys(LISTS, [HARD])


def test_tasks_and_mappings_may_have_any_name(monkeypatch: Patch) -> None:
    (config,) = composed_from(["task=我的 任务(2),=x", "pretrain.repeats={新闻: 2, b c: 1}"], monkeypatch)
    assert config["tasks"] == ["我的 任务(2),=x"]
    assert config["pretrain"]["repeats"] == {"新闻": 2, "b c": 1}


def test_the_tokenizer_of_an_import_is_a_path(monkeypatch: Patch) -> None:
    (config,) = composed_from([f"tokenizer={HARD}"], monkeypatch, "import_checkpoint")
    assert config["import_checkpoint"]["tokenizer"] == HARD


def test_null_quotes_and_interpolations_are_left_as_they_are(monkeypatch: Patch) -> None:
    words = ["checkpoint=null", "run.name='a b'", "data.root=/x/${seed}", "seed=7", "data.corpus=[]"]
    (config,) = composed_from(words, monkeypatch)
    found = [config["checkpoint"], config["run"]["name"], config["data"]["root"], config["data"]["corpus"]]
    assert found == [None, "a b", "/x/7", []]


@pytest.mark.parametrize("place", [0, 1, 2])
def test_the_flag_of_a_sweep_may_stand_anywhere(place: int, tmp_path: Path, monkeypatch: Patch) -> None:
    words = ["seed=1,2", f"run.dir={tmp_path}"]
    words.insert(place, "-m")
    assert [config["seed"] for config in composed_from(words, monkeypatch)] == [1, 2]


def test_sweeps_go_over_texts_at_commas(tmp_path: Path, monkeypatch: Patch) -> None:
    words = ["data.root=/数据 a,/b(1)", f"run.dir={tmp_path}", "task=甲,b", "-m"]
    found = composed_from(words, monkeypatch)
    assert [(config["data"]["root"], config["tasks"]) for config in found] == [
        ("/数据 a", ["甲"]), ("/数据 a", ["b"]), ("/b(1)", ["甲"]), ("/b(1)", ["b"]),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("word", "put"),
    [
        ("input=a,b.csv", "input='a,b.csv'"),
        ("run.name=1e3", "run.name='1e3'"),
        ("checkpoint=null", "checkpoint=null"),
        ("input='a b.csv'", "input='a b.csv'"),
        ("seed=1,2", "seed=1,2"),
        ("tasks=[数据,demo]", "tasks=['数据','demo']"),
        ("data.corpus=a,b.txt", "data.corpus=['a,b.txt']"),
        ("input=it's.csv", "input='it\\'s.csv'"),
        ("input=a\\", "input='a\\\\'"),
        ("model.experts=[4,4]", "model.experts=[4,4]"),
        ("pretrain.repeats={新闻: 2}", "pretrain.repeats='{新闻: 2}'"),
        ("--cfg", "--cfg"),
        ("=3", "=3"),
    ],
)
def test_text_and_what_cannot_be_read_get_quotes(word: str, put: str) -> None:
    assert as_typed(word, text_keys(), sweeps=False, reads=compose._is_readable) == put


def test_what_a_sweep_can_read_stays_as_it_is() -> None:
    for word in ("input=a.csv,b.csv", "run.name=1,2", "run.name=choice(a,b)", "seed=range(1,3)"):
        assert as_typed(word, text_keys(), sweeps=True, reads=compose._is_readable) == word


def test_flags_come_first_with_their_values() -> None:
    assert flags_first(["seed=1", "--cfg", "job", "a=b", "-m"]) == ["--cfg", "job", "-m", "seed=1", "a=b"]
    assert flags_first(["--info", "seed=1"]) == ["--info=all", "seed=1"]
    assert flags_first(["seed=1", "--info", "defaults"]) == ["--info=defaults", "seed=1"]


@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("sead=1", ["unknown key 'sead'", "'seed'"]),
        ("pretrain.stepz=1", ["unknown key 'pretrain.stepz'", "'steps'"]),
        ("pretrain.optimzer.lr=1", ["unknown key 'pretrain.optimzer.lr'", "'optimizer'"]),
        ("pretrain.optimizer.learning_rat=1", ["unknown key 'pretrain.optimizer.learning_rat'"]),
        ("objective.schedules.balance.begin_at=1", ["unknown key 'objective.schedules.balance.begin_at'", "'begins_at'"]),
        ("steps=3", ["unknown key 'steps'", "'pretrain.steps'"]),
        ("pretrain.lr=1", ["unknown key 'pretrain.lr'", "'pretrain.optimizer.lr'"]),
        ("model.router.jiter=0.1", ["unknown key 'model.router.jiter'", "'model.router.jitter'"]),
        ("pretrain.optimizer={lrr: 1}", ["unknown key 'pretrain.optimizer.lrr'", "'lr'"]),
        ("+pretrain.stepz=1", ["pretrain.stepz: unknown key", "'steps'"]),
        ("++engine.loss_scale.windw=1", ["engine.loss_scale.windw: unknown key", "'window'"]),
        ("model/rooter=top1", ["'model/rooter'", "'model/router'"]),
        ("modle=tiny", ["unknown key 'modle'", "'model'"]),
    ],
)
def test_an_unknown_key_at_any_depth_suggests_the_nearest(word: str, words: list[str], monkeypatch: Patch, capsys: Capture) -> None:
    refused("run", [word], words, monkeypatch, capsys)


def test_settings_are_printed_with_names_as_typed(monkeypatch: Patch, capsys: Capture) -> None:
    code, said = in_process("run", ["--cfg=job", "pretrain.repeats.新闻=2", "pretrain.repeats.1:30=3"], monkeypatch, capsys)
    assert code == 0
    assert "  repeats:\n    新闻: 2\n    '1:30': 3\n" in said
    assert "__name_" not in said
    assert "++pretrain.repeats.新闻=2" in in_process("run", ["--cfg=all", "pretrain.repeats.新闻=2"], monkeypatch, capsys)[1]


@pytest.mark.parametrize("key", ["task_dir", "data.root", "checkpoint"])
@pytest.mark.parametrize("is_file", [False, True])
def test_a_place_that_is_no_directory_is_named_before_anything_is_built(
    key: str, is_file: bool, tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    place = tmp_path / "在 这里"
    if is_file:
        place.write_text("", encoding="utf-8")
    words = ["experiment=demo_from_scratch", f"run.dir={tmp_path}/runs", f"{key}={place}"]
    said = [f"{key}: {place} is no directory", "but a file; give" if is_file else "directory; give"]
    refused("run", words, said, monkeypatch, capsys)
    refused("tokenizer", words, said, monkeypatch, capsys)
    assert not list((tmp_path / "runs").rglob("*"))


def test_a_walk_from_a_checkpoint_leaves_out_the_stages_that_make_a_base(
    tmp_path: Path, monkeypatch: Patch, capsys: Capture, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "base").mkdir()
    words = ["experiment=demo_from_scratch", f"run.dir={tmp_path}/runs", f"checkpoint={tmp_path}/base"]
    with caplog.at_level("INFO"):
        code, text = in_process("run", words, monkeypatch, capsys)
    assert code == 2  # that directory holds no model
    assert f"{tmp_path}/base" in text
    assert "tokenizer, pretrain: left out, checkpoint= is the base" in text + caplog.text
    assert not list((tmp_path / "runs").rglob("*"))


def test_names_inside_a_mapping_are_taken_as_they_are_typed(tmp_path: Path, monkeypatch: Patch) -> None:
    words = [
        "pretrain.repeats.新闻=2",
        "pretrain.repeats.2024=3",
        "data.files.标题.dev=/数据 a=b.xlsx",
        "data.files.标题.开发=2024",
    ]
    (config,) = composed_from(words, monkeypatch)
    assert config["pretrain"]["repeats"] == {"新闻": 2, "2024": 3}
    assert config["data"]["files"] == {"标题": {"dev": "/数据 a=b.xlsx", "开发": "2024"}}
    (config,) = composed_from(["data.files={dev: 数据/a b.csv, unlabeled: 2024}"], monkeypatch)
    assert config["data"]["files"] == {"dev": "数据/a b.csv", "unlabeled": "2024"}


def test_a_name_is_added_to_those_of_an_experiment(monkeypatch: Patch) -> None:
    (config,) = composed_from(["experiment=study_base", "pretrain.repeats.新闻=2"], monkeypatch, "run")
    assert config["pretrain"]["repeats"] == {"colloquial": 2, "新闻": 2}
    (config,) = composed_from(["experiment=study_base", "pretrain.repeats.colloquial=5"], monkeypatch, "run")
    assert config["pretrain"]["repeats"] == {"colloquial": 5}


def test_sweeps_go_over_names_inside_a_mapping(tmp_path: Path, monkeypatch: Patch) -> None:
    found = composed_from(["pretrain.repeats.新闻=1,2", f"run.dir={tmp_path}", "-m"], monkeypatch)
    assert [config["pretrain"]["repeats"] for config in found] == [{"新闻": 1}, {"新闻": 2}]
    found = composed_from(["data.files={开发: a.csv},{开发: b.csv}", f"run.dir={tmp_path}", "-m"], monkeypatch)
    assert [config["data"]["files"] for config in found] == [{"开发": "a.csv"}, {"开发": "b.csv"}]


def test_a_wrong_value_inside_a_mapping_is_named_as_it_was_typed(monkeypatch: Patch, capsys: Capture) -> None:
    refused("pretrain", ["pretrain.repeats.新闻=x"], ["pretrain.repeats.新闻: expected int"], monkeypatch, capsys)


def test_points_of_different_values_have_different_names() -> None:
    paths = ["sw/v/1", "sw/v1", "'sw/v 1'", "swv1", "s[w]v1", "'sw\\'v1'"]
    names = [point_name([f"data.root={path}", "seed=1"]) for path in paths]
    assert len(set(names)) == len(paths)
    assert all(name.startswith("data.root=swv1") and name.endswith(",seed=1") and "/" not in name for name in names)
    assert point_name(["tasks=['a', b]", "model/router=top1"]) == "tasks=a,b,modelrouter=top1", "nothing is lost: no digest"
    assert point_name([]) == "point"
