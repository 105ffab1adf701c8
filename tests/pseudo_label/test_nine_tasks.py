"""The nine CLUE tasks, every criterion, every prompt, dense and sparse: the library's keys are those of the naive reference.

Label sets, words, trees and prompts are the shipped ones; the rows are made up. The reference is in `naive_scoring.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from adapt.core.spans import LabelForm
from adapt.model.gpt import GPT, materialize
from adapt.scoring.scorer_config import Layout, ScorerConfig
from adapt.scoring.tree_scorer import TreeScorer
from adapt.text.tokenizer import Tokenizer
from pseudo_label.coarse_to_fine import CoarseToFine
from pseudo_label.criteria.contract import CRITERIA, get_criterion
from pseudo_label.decision import Method
from pseudo_label.labelling import ScoringConfig, TaskScorer, content_free_rows, predictions
from pseudo_label.prompts import Prompt
from pseudo_label.tasks import PromptConfig, TaskConfig, TaskRow, load_task, row_from
from pseudo_label.zero_shot import PromptKeys, keys_from, passes_for, score_pass
from tests.support.naive_scoring import FORMULAS, Naive, naive_prior_biases, naive_softmax
from tests.support.tiny_models import ROOT, tiny_config

TOLERANCE = 1e-4
REVIEWS = ["很好用，还会再买", "坏了，也没人管！", "一般", "物流很快，味道也不错", "不值这个价"]
RECORDS: dict[str, list[dict[str, Any]]] = {
    "eprstmt": [{"id": i, "sentence": text} for i, text in enumerate(REVIEWS)],
    "tnews": [
        {"sentence": "股市今天大涨", "keywords": "股市,大涨", "id": 0},
        {"sentence": "国足赢了比赛", "keywords": "", "id": 1},
        {"sentence": "新款手机发布", "id": 2},
    ],
    "csldcp": [{"content": "研究了钢的疲劳寿命", "id": 0}, {"content": "古代诗歌", "id": 1}],
    "iflytek": [{"sentence": "背单词，学语法", "id": 0}, {"sentence": "打车", "id": 1}],
    "ocnli": [
        {"sentence1": "他在公园里跑步", "sentence2": "他在室外", "id": 0},
        {"sentence1": "下雨了", "sentence2": "今天是晴天，没有云", "id": 1},
    ],
    "bustm": [
        {"sentence1": "几点了", "sentence2": "现在是什么时间", "id": 0},
        {"sentence1": "放首歌", "sentence2": "关灯", "id": 1},
    ],
    "chid": [
        {"content": "他做事总是#idiom#，没有结果。", "candidates": ["画龙点睛", "守株待兔", "半途而废"], "id": 0},
        {"content": "#idiom#，说的就是她", "candidates": [f"{x}全{y}美" for x in "十百" for y in "十百千"] + ["好"], "id": 1},
        {"content": "这一笔真是#idiom#", "candidates": ["画龙点睛"], "id": 2},
    ],
    "csl": [
        {"id": 0, "abst": "提出一种新的算法", "keyword": ["算法", "网络"]},
        {"id": 1, "abst": "分析了水稻的产量", "keyword": ["水稻"]},
    ],
    "cluewsc": [
        {"target": {"span2_text": "他", "span1_text": "老师", "span2_index": 5}, "text": "老师说他今天不来了", "idx": 0},
        {"target": {"span2_text": "它", "span1_text": "猫"}, "text": "猫看着狗，它跑了", "idx": 1},
    ],
}
LARGE = ("iflytek", "csldcp", "tnews", "eprstmt")  # of many labels, or many prompts
SMALL_FIRST = [pytest.param(name, marks=[pytest.mark.slow] if name in LARGE else []) for name in RECORDS]
# Every size changes how candidates are batched and laid out, and no key.
BATCHINGS = {
    "as it comes": ScorerConfig(),
    "packed, small batches": ScorerConfig(layout=Layout.PACKED, max_batch_tokens=200, window=1),
    "rows": ScorerConfig(layout=Layout.ROWS, max_batch_tokens=700, window=2),
    "cached trunk, one at a time": ScorerConfig(layout=Layout.CACHE, max_batch_tokens=1, logit_rows=7),
}


@pytest.fixture(scope="module", params=[pytest.param("dense", marks=pytest.mark.slow), "sparse"])
def model(request: pytest.FixtureRequest) -> GPT:
    experts = {"dense": [0], "sparse": [6]}[request.param]
    return materialize(GPT(tiny_config(experts, n_layers=2, context_length=128)), seed=2).eval()


def shipped(name: str) -> tuple[TaskConfig, list[TaskRow]]:
    task = load_task(name, [ROOT / "conf" / "task"])
    return task, [row_from(record, task, "made up", line) for line, record in enumerate(RECORDS[name], start=1)]


def wanted_of(task: TaskConfig) -> list[tuple[str, str]]:
    """Return every (prompt, criterion)."""
    return [(prompt, name) for prompt in task.prompts for name in FORMULAS]


def library_keys(
    model: GPT, tokenizer: Tokenizer, task: TaskConfig, rows: list[TaskRow], form: LabelForm, config: ScorerConfig
) -> list[PromptKeys]:
    """Return the keys of all prompts under all criteria, from one pass over the rows for each prompt and form."""
    pairs = [(prompt, get_criterion(name)) for prompt, name in wanted_of(task)]
    passes = passes_for(pairs, form, with_groups=task.label_tree is not None)
    assert len({what.name for what in passes}) == len(passes) <= 4 * len(task.prompts)
    scorer = TreeScorer(model, config)
    domain = [row.texts for row in rows]
    scored = [score_pass(scorer, Prompt(task, what.prompt, tokenizer, model.context_length), rows, what, domain) for what in passes]
    return keys_from(scored, pairs, form, task)


def assert_keys(found: PromptKeys, rows: Sequence[TaskRow], naive: Naive, form: LabelForm) -> None:
    """Compare keys with the reference, row by row; places beyond a row's own candidates are at -inf."""
    for index, row in enumerate(rows):
        masked = form is LabelForm.MLM
        labels = naive.label_keys(found.criterion, found.prompt, row, masked=masked)
        rest = [-np.inf] * (found.labels_NC.shape[1] - len(labels))
        message = f"{found.prompt}, {found.criterion}, row {index}"
        np.testing.assert_allclose(found.labels_NC[index], labels + rest, atol=TOLERANCE, rtol=0, err_msg=message)
        if naive.groups:
            assert found.groups_NG is not None
            groups = naive.keys(found.criterion, found.prompt, row, naive.groups, masked=masked)
            np.testing.assert_allclose(found.groups_NG[index], groups, atol=TOLERANCE, rtol=0, err_msg=message)
        else:
            assert found.groups_NG is None


def test_every_registered_criterion_has_a_formula_here() -> None:
    get_criterion("sum")  # imports the folder
    assert set(CRITERIA.names()) == set(FORMULAS)


def test_the_nine_tasks_are_here_with_their_numbers_of_labels() -> None:
    counts = {name: len(shipped(name)[0].labels) for name in RECORDS}
    binary = {"eprstmt": 2, "bustm": 2, "csl": 2, "cluewsc": 2}
    assert counts == {**binary, "ocnli": 3, "tnews": 15, "csldcp": 67, "iflytek": 119, "chid": 0}


@pytest.mark.parametrize("name", SMALL_FIRST)
def test_every_criterion_of_every_prompt_is_that_of_one_full_pass_per_candidate(
    model: GPT, tokenizer: Tokenizer, name: str
) -> None:
    task, rows = shipped(name)
    naive = Naive(task, model, tokenizer, rows)
    for form in LabelForm:
        # Masks stand in the way of no batching: one other way to batch is enough for them.
        batchings = BATCHINGS.values() if form is LabelForm.CLM else list(BATCHINGS.values())[:2]
        for config in batchings:
            found = library_keys(model, tokenizer, task, rows, form, config)
            assert [(k.prompt, k.criterion) for k in found] == wanted_of(task)
            for keys in found:
                assert_keys(keys, rows, naive, form)


@pytest.mark.parametrize("name", SMALL_FIRST)
def test_the_tasks_own_choice_of_prompts_and_criteria_is_scored(model: GPT, tokenizer: Tokenizer, name: str) -> None:
    task, rows = shipped(name)
    naive = Naive(task, model, tokenizer, rows)
    config = ScoringConfig(domain=[dict(row.texts) for row in rows])
    scorer = TaskScorer(task, config, TreeScorer(model, ScorerConfig()), tokenizer)
    found = scorer.keys(rows)
    assert [(k.prompt, k.criterion) for k in found] == [(p, task.prompts[p].criterion) for p in scorer.config.names(task)]
    for keys in found:
        for index, row in enumerate(rows):
            wanted = naive.label_keys(keys.criterion, keys.prompt, row)
            assert keys.labels_NC[index, : len(wanted)] == pytest.approx(wanted, abs=TOLERANCE)


def test_synonyms_are_scored_beside_the_words_and_averaged(model: GPT, tokenizer: Tokenizer) -> None:
    shipped_task, rows = shipped("tnews")
    further = {"103": ["足球", "比赛"], "104": ["金融"]}
    prompts = {name: replace(prompt, synonyms=further) for name, prompt in shipped_task.prompts.items()}
    task = replace(shipped_task, prompts=prompts)
    naive = Naive(task, model, tokenizer, rows)
    plain = library_keys(model, tokenizer, replace(task, prompts=no_synonyms(prompts)), rows, LabelForm.CLM, ScorerConfig())
    found = library_keys(model, tokenizer, task, rows, LabelForm.CLM, ScorerConfig())
    others = [place for place, label in enumerate(task.labels) if label not in further]
    for keys, without in zip(found, plain, strict=True):
        assert_keys(keys, rows, naive, LabelForm.CLM)
        np.testing.assert_allclose(keys.labels_NC[:, others], without.labels_NC[:, others], atol=TOLERANCE, rtol=0)
        assert keys.criterion != "sum" or np.abs(keys.labels_NC - without.labels_NC).max() > 0.01
    scorer = TaskScorer(task, ScoringConfig(with_groups=True), TreeScorer(model, ScorerConfig()), tokenizer)
    unlabeled = scorer.keys(rows)
    decision = scorer.fit(Method.PRIOR, unlabeled, coarse_to_fine=CoarseToFine(beam=2))
    np.testing.assert_allclose(scorer.scores(rows, decision), decision.scores(unlabeled, task), atol=TOLERANCE)


def no_synonyms(prompts: Mapping[str, PromptConfig]) -> dict[str, PromptConfig]:
    return {name: replace(prompt, synonyms=None) for name, prompt in prompts.items()}


def decided(task: TaskConfig, rows: list[TaskRow], found: np.ndarray, wanted: Sequence[Sequence[float]]) -> None:
    """Compare scores, and the answers that follow from them."""
    np.testing.assert_allclose(found, np.asarray(wanted), atol=TOLERANCE, rtol=0)
    assert predictions(found, rows, task) == [task.labels[int(np.argmax(row))] for row in wanted]


def test_content_free_calibration_takes_off_what_is_said_of_nothing(model: GPT, tokenizer: Tokenizer) -> None:
    task, rows = shipped("tnews")
    naive = Naive(task, model, tokenizer, rows)
    scorer = TaskScorer(task, ScoringConfig(), TreeScorer(model, ScorerConfig()), tokenizer)
    found = scorer.scores(rows, scorer.fit(Method.CONTENT_FREE, []))
    keys, of_nothing = ([naive.label_keys("sum", "reference", row) for row in given] for given in (rows, content_free_rows(task)))
    mean = np.mean([naive_softmax(row) for row in of_nothing], axis=0)
    decided(task, rows, found, np.asarray(keys) - np.log(mean))


def test_prior_matching_finds_the_biases_that_make_the_mean_posterior_uniform(model: GPT, tokenizer: Tokenizer) -> None:
    task, rows = shipped("tnews")
    naive = Naive(task, model, tokenizer, rows)
    scorer = TaskScorer(task, ScoringConfig(), TreeScorer(model, ScorerConfig()), tokenizer)
    found = scorer.scores(rows, scorer.fit(Method.PRIOR, scorer.keys(rows)))
    keys = [naive.label_keys("sum", "reference", row) for row in rows]
    decided(task, rows, found, np.asarray(keys) + naive_prior_biases(keys, [1 / 15] * 15))


def test_the_ensemble_averages_standardised_prompts_and_matches_the_prior(model: GPT, tokenizer: Tokenizer) -> None:
    task, rows = shipped("tnews")
    naive = Naive(task, model, tokenizer, rows)
    scorer = TaskScorer(task, ScoringConfig(), TreeScorer(model, ScorerConfig()), tokenizer)
    decision = scorer.fit(Method.ENSEMBLE, scorer.keys(rows))
    assert decision.prompts == scorer.config.names(task) and len(decision.prompts) > 2
    total = np.zeros((len(rows), 15))
    for prompt in decision.prompts:
        criterion = task.prompts[prompt].criterion
        keys = [naive.label_keys(criterion, prompt, row) for row in rows]
        centred = [[key - sum(row) / 15 for key in row] for row in keys]
        means = [sum(row[label] for row in centred) / len(rows) for label in range(15)]
        rest = [[key - mean for key, mean in zip(row, means, strict=True)] for row in centred]
        flat = [key for row in rest for key in row]
        spread = (sum((key - sum(flat) / len(flat)) ** 2 for key in flat) / len(flat)) ** 0.5
        total += np.asarray(rest) / spread / len(decision.prompts)
    decided(task, rows, scorer.scores(rows, decision), total + naive_prior_biases(total.tolist(), [1 / 15] * 15))
