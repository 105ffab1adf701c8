"""Task files of other programs: read as they read them, they give the tokens that this project scores, for every shipped task."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import jinja2
import numpy as np
import pytest
import yaml

from adapt.core.errors import ConfigError
from adapt.core.spans import LabelForm, Span
from adapt.text.hf_tokenizer import HFTokenizer
from adapt.text.sentencepiece_json import PART_MARK, json_bytes, tokenizer_json
from adapt.text.tokenizer import Tokenizer
from pipelines.config.locations import conf_dir, demo_dir
from pseudo_label.decision import Decision, FittedScores, Method
from pseudo_label.harnesses.lm_eval import write_lm_eval
from pseudo_label.harnesses.opencompass import write_opencompass
from pseudo_label.harnesses.prompt_text import HarnessRows, PromptText, TextForm, harness_rows, prompt_text
from pseudo_label.labelling import ScoringConfig
from pseudo_label.prompts import Prompt
from pseudo_label.task_config import TaskConfig, TaskRow
from pseudo_label.tasks import labels_of, load_task
from tests.support.hf_checkpoints import make_checkpoint
from tests.support.yaml_functions import Loader

TASKS = sorted(path.stem for path in (conf_dir() / "task").glob("*.yaml"))
CONTEXT = 96
RAW = Decision(method=Method.RAW, labels=FittedScores(prompts=["reference"]), groups=None, n_fitted=0)
TEXTS = ["物流很快，\u2028包装\x85也好。", "第一行\n第二行 {{x}} {a} 100%", "一" * 150, "", "a  b ", "123"]


@pytest.fixture(scope="module")
def shipped() -> Tokenizer:
    return Tokenizer.load(demo_dir() / "base")


def rows_of(task: TaskConfig) -> list[TaskRow]:
    rows = []
    for number, text in enumerate(TEXTS):
        texts = {
            name: f"{text}{spec.blank}{text[::-1]}" if spec.blank else f"{text}{number if text else ''}"
            for name, spec in task.fields.items()
        }
        if not any(spec.blank for spec in task.fields.values()) and any(name not in task.shorten for name in task.fields):
            texts = {name: value if name in task.shorten else value[:9] for name, value in texts.items()}
        candidates = ("一帆风顺", "好", "a b", "三心二意") if task.candidates else None
        row = TaskRow(id=number, texts=texts, label=None, candidates=candidates, line=number)
        rows.append(replace(row, label=labels_of(row, task)[number % 2]))
    return rows


def made(task: TaskConfig, form: TextForm) -> tuple[PromptText, HarnessRows]:
    prompt = prompt_text(task, ScoringConfig(), RAW, form)
    return prompt, harness_rows(task, prompt, rows_of(task))


def read_as_lm_eval(place: Path, name: str) -> list[tuple[str, list[str], int]]:
    """Return each row's context, continuations and gold place, by the rules of lm-evaluation-harness."""
    content: dict[str, Any] = yaml.load((place / f"{name}.yaml").read_text(encoding="utf-8"), Loader)
    assert content["output_type"] == "multiple_choice" and content["target_delimiter"] == ""
    assert content["custom_dataset"] == "local_rows.load"
    template = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True).from_string(content["doc_to_text"])
    reader: dict[str, Any] = {"__file__": str(place / "local_rows.py")}
    exec((place / "local_rows.py").read_text(encoding="utf-8"), reader)
    found = []
    for record in reader["load"](**content["dataset_kwargs"], version=1.0)["test"]:
        choices = content["doc_to_choice"]
        found.append((template.render(**record), record[choices] if isinstance(choices, str) else choices, record["label"]))
    return found


def cut_as_lm_eval(tokenizer: HFTokenizer, start: int, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Return the tokens before and in a continuation: trailing spaces go to it, and the whole is encoded at once."""
    n_spaces = len(context) - len(context.rstrip())
    context, continuation = context[: len(context) - n_spaces], context[len(context) - n_spaces :] + continuation
    before = tokenizer.encode_documents([context])[0] if context else []
    whole = tokenizer.encode_documents([context + continuation])[0]
    return [start, *before], whole[len(before) :]


@pytest.mark.parametrize("name", TASKS)
def test_a_task_read_by_the_harness_gives_the_tokens_that_are_scored(name: str, shipped: Tokenizer, tmp_path: Path) -> None:
    task = load_task(name, [conf_dir() / "task"])
    prompt, rows = made(task, TextForm(tokenizer=shipped, context_length=CONTEXT, separator=PART_MARK))
    write_lm_eval(tmp_path, prompt, rows)
    other = HFTokenizer(
        {"tokenizer.json": json_bytes(tokenizer_json(shipped))}, {"bos_token_id": 2, "eos_token_id": 3}, "json", is_recorded=True
    )
    rendered = Prompt(task, task.reference, shipped, CONTEXT)
    n_same = 0
    for row, (context, continuations, gold) in zip(rows_of(task), read_as_lm_eval(tmp_path / "lm_eval", name), strict=True):
        assert labels_of(row, task)[gold] == row.label
        readings = rendered.readings(row, LabelForm.CLM)[: len(continuations)]
        if not rendered.fitted_parts(row)[1]:
            continue
        n_same += 1
        for reading, continuation in zip(readings, continuations, strict=True):
            before, inside = cut_as_lm_eval(other, shipped.bos_id, context, continuation)
            first = int(np.flatnonzero(reading.kinds_T == int(Span.LABEL))[0]) + 1
            ids = reading.inputs_T.tolist()
            assert before == ids[:first]
            assert inside == ids[first : first + len(inside)]
            n_label = int((reading.kinds_T == int(Span.LABEL)).sum())
            assert len(inside) == (len(ids) - first if prompt.counts_after else n_label)
    assert n_same >= len(TEXTS) - 1


def test_a_hugging_face_base_gets_its_document_start_and_whole_texts(tmp_path: Path) -> None:
    tokenizer = HFTokenizer.load(make_checkpoint(tmp_path / "base", "qwen3"))
    task = load_task("sst2", [conf_dir() / "task"])
    prompt, rows = made(task, TextForm(tokenizer=tokenizer, context_length=CONTEXT, start=tokenizer.start_as_text))
    write_lm_eval(tmp_path, prompt, rows)
    rendered = Prompt(task, task.reference, tokenizer, CONTEXT)
    for row, (context, continuations, _) in zip(rows_of(task), read_as_lm_eval(tmp_path / "lm_eval", "sst2"), strict=True):
        assert context.startswith(tokenizer.start_as_text)
        plain = context.removeprefix(tokenizer.start_as_text)
        for reading, continuation in zip(rendered.readings(row, LabelForm.CLM), continuations, strict=False):
            before, inside = cut_as_lm_eval(tokenizer, tokenizer.bos_id, plain, continuation)
            assert [*before, *inside] == reading.inputs_T.tolist()
            assert len(inside) == int((reading.kinds_T == int(Span.LABEL)).sum())


def test_what_a_task_file_cannot_say_is_said(shipped: Tokenizer, tmp_path: Path) -> None:
    task = load_task("tnews", [conf_dir() / "task"])
    form = TextForm(tokenizer=shipped, context_length=CONTEXT, separator=PART_MARK)
    prompt = prompt_text(task, ScoringConfig(criterion="pmi"), replace(RAW, method=Method.PRIOR), form)
    write_lm_eval(tmp_path, prompt, harness_rows(task, prompt, rows_of(task)))
    head = [line for line in (tmp_path / "lm_eval" / "tnews.yaml").read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    for word in ("criterion pmi", "prompts left out", "label tree", "method prior", "were cut"):
        assert any(word in line for line in head), word
    with pytest.raises(ConfigError, match="ranks by the text given the label"):
        prompt_text(task, ScoringConfig(criterion="channel"), RAW, form)
    with pytest.raises(ConfigError, match="predicts the label at <mask>"):
        prompt_text(task, ScoringConfig(form=LabelForm.MLM), RAW, form)


def stub_of_opencompass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put modules in place that have the names that OpenCompass's own configurations import."""
    names = {
        "opencompass.datasets": ["HFDataset"],
        "opencompass.models": ["HuggingFaceBaseModel"],
        "opencompass.openicl.icl_evaluator": ["AccEvaluator"],
        "opencompass.openicl.icl_inferencer": ["PPLInferencer"],
        "opencompass.openicl.icl_prompt_template": ["PromptTemplate"],
        "opencompass.openicl.icl_retriever": ["ZeroRetriever"],
    }
    for module in ("opencompass", "opencompass.openicl", *names):
        made_module = ModuleType(module)
        for name in names.get(module, []):
            setattr(made_module, name, type(name, (), {}))
        monkeypatch.setitem(__import__("sys").modules, module, made_module)


@pytest.mark.parametrize("name", TASKS)
def test_the_file_for_opencompass_fills_whole_prompts(
    name: str, shipped: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = load_task(name, [conf_dir() / "task"])
    prompt, rows = made(task, TextForm(tokenizer=shipped, context_length=CONTEXT, separator=PART_MARK))
    assert write_opencompass(tmp_path, prompt, rows) is None
    stub_of_opencompass(monkeypatch)
    place = tmp_path / "opencompass" / f"{name}.py"
    spec = importlib.util.spec_from_file_location("planted_config", place)
    assert spec is not None and spec.loader is not None
    config: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(config)
    [data] = config.datasets
    assert config.models[0]["path"] == str(tmp_path)
    assert {"type", "abbr", "path", "data_files", "split", "reader_cfg", "infer_cfg", "eval_cfg"} == set(data)
    templates = data["infer_cfg"]["prompt_template"]["template"]
    records = [json.loads(line) for line in Path(data["data_files"]).read_text(encoding="utf-8").split("\n")[:-1]]
    rendered = Prompt(task, task.reference, shipped, CONTEXT)
    for row, record in zip(rows_of(task), records, strict=True):
        if not rendered.fitted_parts(row)[1] or "{" in "".join(row.texts.values()):
            continue
        for label, reading in zip(templates, rendered.readings(row, LabelForm.CLM), strict=False):
            text = templates[label]
            for column in data["reader_cfg"]["input_columns"]:
                text = text.replace(f"{{{column}}}", record[column])
            ids = [token for part in text.split(PART_MARK) for token in shipped.encode(part)]
            assert [shipped.bos_id, *ids] == reading.inputs_T.tolist()


def test_rows_with_different_numbers_of_candidates_get_no_file_for_opencompass(shipped: Tokenizer, tmp_path: Path) -> None:
    task = load_task("chid", [conf_dir() / "task"])
    prompt = prompt_text(task, ScoringConfig(), RAW, TextForm(tokenizer=shipped, context_length=CONTEXT, separator=PART_MARK))
    first, second, *_ = rows_of(task)
    rows = harness_rows(task, prompt, [first, replace(second, candidates=("一", "二"))])
    assert "different numbers of candidates" in str(write_opencompass(tmp_path, prompt, rows))
    assert not (tmp_path / "opencompass").exists()
