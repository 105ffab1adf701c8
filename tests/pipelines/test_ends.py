"""What a command prints at its end is of the stages that it was asked for; an older export is called one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from adapt.core.artifacts import METRICS_FILE, Artifact
from pipelines.stages.products import REPORT_FILE
from pipelines.stages.run import Run
from pipelines.walk.ends import ends
from tests.support.command_line import composed
from tests.support.finished_runs import produced


def evaluated(root: Path, accuracy: float) -> Artifact:
    row = {"task": "reviews", "split": "dev", "n": 8, "method": "raw", "model": "base", "accuracy": accuracy, "ci95": [0.2, 0.8]}
    files = {METRICS_FILE: json.dumps([row]), "decision.json": f"{accuracy}"}
    return produced(root, "x/evaluate/reviews", "evaluate", {"accuracy": accuracy}, {"table": [row]}, files)


def test_results_of_stages_that_were_not_asked_for_are_left_out_and_an_older_export_is_said(tmp_path: Path) -> None:
    config = composed("run", [f"run.dir={tmp_path}", "run.name=x", "tasks=[reviews]"])

    def printed(stage: str) -> list[str]:
        text = "\n".join(text for text in ends(Run(replace(config, stages=[stage]))) if text)
        return text.splitlines()

    place, page = (tmp_path / "x" / name for name in ("export/reviews", f"report/{REPORT_FILE}"))
    produced(tmp_path, "x/export/reviews", "export", {}, {}, {"weights": "x"}, evaluate=evaluated(tmp_path, 0.5))
    page.parent.mkdir()
    page.touch()
    assert printed("predict") == []
    assert printed("export") == [f"export: {place}"]
    assert len(printed("evaluate")) == 2 and "50.0 [20.0, 80.0]" in printed("evaluate")[-1]
    assert printed("report") == [*printed("evaluate"), f"report: {page}"]
    evaluated(tmp_path, 0.6)
    older = f"export: {place} is older than this evaluation; run `python -m pipelines.export` for a new one"
    assert printed("evaluate")[-1] == older
    assert printed("predict") == []
