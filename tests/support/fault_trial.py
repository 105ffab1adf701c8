"""Faults of the machine, stage by stage, on a small file system: what a command says, and what the same command makes afterwards.

A process in a mount namespace of its own; it imports what a command needs once and forks for every command. Arguments: the mount
point, a finished run directory, a data root's arguments as JSON, where to write what was seen, and cases `stage:fault`.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

from adapt.core.artifacts import ArtifactStore, StageKey
from tests.support.small_disk import NOT_PERMITTED, fill, mounted

TASK = "demo_reviews"
TRACKER = "tracker"  # no stage: the place that a tracked training tells its steps to fails, and nothing else
# What is taken away, so that the stage has to build: what stands beside it keeps the stage from being asked.
STAGES: dict[str, tuple[str, ...]] = {
    "tokenizer": ("tokenizer",),
    "pretrain": ("pretrain",),
    "score": ("score", "pseudo_label"),
    "lexical": ("lexical", "pseudo_label"),
    "pseudo_label": ("pseudo_label",),
    "general_text": ("general_text", "continue_pretrain"),
    "continue_pretrain": ("continue_pretrain",),
    "evaluate": ("evaluate",),
    "export": ("export",),
    "predict": ("predict",),
    "report": ("report",),
    TRACKER: ("continue_pretrain",),
}
# Stages that no walk has: their command's name, and its settings; `{run}` is the run directory, `{beside}` where the report goes.
COMMANDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "import_checkpoint": ("import_checkpoint", ("importer=pai_gpt_moe", "source={beside}/theirs", "run.name=mine")),
    "label_tree": ("label_tree", ("task=demo_topics", "checkpoint={run}/demo/pretrain", "label_tree.rows=60",
                                  "label_tree.source=confusions")),
    "prompt_search": ("prompt_search", (f"task={TASK}", "checkpoint={run}/demo/pretrain", "prompt_search.rows=40")),
}  # fmt: skip
UNDISTURBED = "none"
FAULTS = ("full", "read-only", "vanished", "SIGKILL", "SIGTERM", "two at once")
LATER = " later"  # the fault happens once a state of the training is there
FAULTS_OF_TRAINING = tuple(f"{fault}{LATER}" for fault in ("full", "read-only", "vanished"))


def main(place: Path, finished: Path, arguments: list[str], report: Path, cases: list[str]) -> int:
    if not mounted(place):
        return NOT_PERMITTED
    import pipelines.stages.rank_jobs  # noqa: F401 (torch and all that commands import, before they are forked)

    seen = []
    for case in cases:
        stage, _, fault = case.partition(":")
        seen.append({"stage": stage, "fault": fault, **_tried(place / "run", report.parent, finished, arguments, stage, fault)})
        shutil.rmtree(place / "run")
        report.write_text(json.dumps(seen, indent=1), encoding="utf-8")
    return 0


def _tried(run_dir: Path, words: Path, finished: Path, arguments: list[str], stage: str, fault: str) -> dict[str, Any]:
    """Take a stage's result away, make it again under a fault, and once more without; `words` is where what is said goes."""
    shutil.copytree(finished, run_dir, symlinks=True)
    for name in STAGES.get(stage, ()):
        shutil.rmtree(run_dir / "store" / name)
    command, own = COMMANDS.get(stage, ("run", (f"task={TASK}",)))
    settings = [] if stage == "import_checkpoint" else arguments
    line = [command, *settings, *(word.format(run=run_dir, beside=words) for word in own), f"run.dir={run_dir}"]
    if stage == TRACKER:
        return _tracked(run_dir, words, [*line, "tracker=wandb"], fault)
    ballast = run_dir.parent / "ballast"
    faults: Mapping[str, Callable[[Path], None]] = {
        "full": lambda made: fill(ballast),
        "read-only": lambda made: _close(run_dir),
        "vanished": lambda made: shutil.rmtree(made.parent),
        "SIGKILL": lambda made: os.kill(os.getpid(), signal.SIGKILL),
        "SIGTERM": lambda made: os.kill(os.getpid(), signal.SIGTERM),
        UNDISTURBED: lambda made: None,
    }
    named, is_later = faults.get(fault.removesuffix(LATER)), fault.endswith(LATER)
    started = [_forked(line, words / f"said-{n}", stage, named, is_later) for n in range(1 if named is not None else 2)]
    ended = [_ended(*one) for one in started]
    ballast.unlink(missing_ok=True)
    if fault.removesuffix(LATER) == "read-only":
        subprocess.run(["umount", str(run_dir)], check=True)
    return _seen(run_dir, ended, _ended(*_forked(line, words / "said-again", stage, None)))


def _tracked(run_dir: Path, words: Path, line: list[str], fault: str) -> dict[str, Any]:
    """Train with a tracker whose place, a file system of its own, fails once a state is there; and once more without.

    What it wrote at last is left in `words`, by the fault's name.
    """
    place = run_dir / "demo" / "wandb"
    place.mkdir()
    is_mounted = fault.removesuffix(LATER) != "vanished"
    if is_mounted:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)], check=True)
    faults: Mapping[str, Callable[[Path], None]] = {
        "full": lambda made: fill(place / "ballast"),
        "read-only": lambda made: _close(place),
        "vanished": lambda made: shutil.rmtree(place),
    }
    stage = STAGES[TRACKER][0]
    ended = [_ended(*_forked(line, words / "said-0", stage, faults[fault.removesuffix(LATER)], fault.endswith(LATER)))]
    if fault.removesuffix(LATER) == "read-only":
        subprocess.run(["umount", str(place)], check=True)
    (place / "ballast").unlink(missing_ok=True)
    again = _ended(*_forked(line, words / "said-again", stage, None))
    shutil.copytree(place, words / f"tracked {fault}", symlinks=True)
    if is_mounted:
        subprocess.run(["umount", str(place)], check=True)
    history = run_dir / "demo" / stage / TASK / "history.jsonl"
    steps = [json.loads(step)["step"] for step in history.read_text(encoding="utf-8").splitlines()]
    return {**_seen(run_dir, ended, again), "steps": steps}


def _seen(run_dir: Path, ended: list[tuple[int, str]], again: tuple[int, str]) -> dict[str, Any]:
    return {
        "codes": [code for code, _ in ended],
        "said": [said for _, said in ended],
        "code again": again[0],
        "said again": again[1],
        "left": [str(left.relative_to(run_dir)) for left in run_dir.glob("store/*/.*.new")],
        "digests": _digests(run_dir),
    }


def _ended(process: int, said: Path) -> tuple[int, str]:
    """Wait for a command; return its exit code and what it said."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), said.read_text(encoding="utf-8")


def _close(place: Path) -> None:
    """Lay a read-only view of a directory over it: whoever opens a file there from now on cannot write."""
    subprocess.run(["mount", "--bind", str(place), str(place)], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", str(place)], check=True)


def _forked(
    line: list[str], said: Path, stage: str, fault: Callable[[Path], None] | None, is_later: bool = False
) -> tuple[int, Path]:
    """Run a command, whose name `line` begins with, in a fork of this process.

    `fault` happens when a stage begins to build, or when it has saved a state.
    """
    said.touch()
    process = os.fork()
    if process:
        return process, said
    stream = os.open(said, os.O_WRONLY | os.O_TRUNC)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    if fault is not None:
        _arm(stage, fault, is_later)
    code = 70
    try:
        from pipelines.command_line.compose import main as command

        sys.argv = [f"pipelines.{line[0]}", *line[1:]]
        command(line[0])
    except SystemExit as left:
        code = int(left.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        sys.stdout.flush()
        os._exit(code)


def _when_saved(work: Path, fault: Callable[[], None]) -> None:
    while not list(work.glob("step-*/state.json")):
        time.sleep(0.005)
    fault()


def _arm(stage: str, fault: Callable[[Path], None], is_later: bool) -> None:
    armed_stage = STAGES[TRACKER][0] if stage == TRACKER else stage
    produce = ArtifactStore.produce

    def armed(store: ArtifactStore, key: StageKey, build: Callable[[Path, Path], Mapping[str, Any]], **how: Any) -> Any:
        def broken(result: Path, work: Path) -> Mapping[str, Any]:
            if is_later:
                threading.Thread(target=_when_saved, args=(work, lambda: fault(result)), daemon=True).start()
            else:
                fault(result)
            return build(result, work)

        return produce(store, key, broken if key.stage == armed_stage else build, **how)

    mock.patch.object(ArtifactStore, "produce", armed).start()


def _digests(run_dir: Path) -> dict[str, str]:
    from tests.support.command_line import digests, digests_of_artifacts

    return digests(run_dir) | digests_of_artifacts(run_dir)


if __name__ == "__main__":
    begun = time.monotonic()
    left = main(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]), Path(sys.argv[4]), sys.argv[5:])
    sys.stderr.write(f"{time.monotonic() - begun:.0f} s\n")
    sys.exit(left)
