"""`python -m pipelines.tune model=... [engine...]`: time training steps under other settings, and name the fastest that fit.

Each trial is a training of a few steps in processes of its own, as many as `engine.world_size` says; its shortest step counts,
since other work on the machine only lengthens steps. One setting is changed at a time, from the one that was given: the fastest
value is kept where it gains more than 2 %, until no change gains. Nothing that is tried changes what is computed, but the order of
sums; `same` says where losses and gradient norms have the same bits. A trial whose plan is larger than `engine.memory_gb`, or than
the memory that is free, is not run. In the end the fastest is timed in turn with the setting that was given.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapt.checkpoint.hf_directory import is_hf_directory
from adapt.checkpoint.offload import MomentFormat, OffloadConfig, OptimizerIn, TrainedWeightsIn
from adapt.core.artifacts import write_atomically
from adapt.core.errors import AdaptError, ConfigError
from adapt.core.faults import writable
from adapt.core.limits import memory_limits
from adapt.core.precision import say_precision
from adapt.model.config import GPTConfig
from adapt.objective_config import ObjectiveConfig
from adapt.train.engine_config import EngineConfig, check_optimizer
from adapt.train.train_config import Trained
from pipelines.config.schema import PipelineConfig
from pipelines.ranks.local import share_of_cores
from pipelines.stages.models import weights_of
from pipelines.stages.run import Run

if TYPE_CHECKING:
    from pipelines.tools.tuned_steps import RankSteps, Subject

_LEAST_GAIN = 0.02
_LEAST_LR = 1e-5  # where adaptation would choose one by the base: it changes no time
_MEMORY_FILE = Path("/proc/meminfo")
_HEADER = ("micro_batch", "recomputed", "zero", "optimizer in", "threads", "s/step", "tokens/s", "GB a rank", "plan GB", "same", "")


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One setting of the engine, as overrides name it."""

    engine: EngineConfig
    offload: OffloadConfig

    def overrides(self, other: Trial) -> str:
        """Return the settings that differ from those of another trial, as one would type them."""
        return " ".join(f"{name}={value}" for name, value in self._named().items() if value != other._named()[name])

    def cells(self) -> list[str]:
        """Return the settings as a line of the table begins."""
        return [str(value) for value in self._named().values()]

    def _named(self) -> dict[str, Any]:
        engine = self.engine
        return {
            "engine.micro_batch": engine.micro_batch,
            "engine.activation_checkpointing": engine.activation_checkpointing.value,
            "engine.zero_stage": engine.zero_stage,
            "offload.optimizer": self.offload.optimizer.value,
            "engine.threads": engine.threads,
        }


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a trial gave: seconds of its shortest step, tokens of a step, largest memory of a rank; or why it gave nothing."""

    planned: float | None
    seconds: float | None = None
    peak: int = 0
    tokens: int = 0
    numbers: tuple[str, ...] = ()
    failure: str | None = None


class Tuner:
    """Runs trials, each once, and remembers what they gave."""

    def __init__(self, config: PipelineConfig, subject: Subject, scratch: Path, say: Callable[[Trial, Outcome], None]) -> None:
        self._config, self._subject, self._scratch, self._say = config, subject, scratch, say
        self.outcomes: dict[Trial, Outcome] = {}
        self.impossible: dict[str, None] = {}

    def seconds(self, trial: Trial) -> float | None:
        """Return the seconds of a trial's step; None where it does not run."""
        if trial not in self.outcomes:
            self.outcomes[trial] = self._run(trial)
            self._say(trial, self.outcomes[trial])
        return self.outcomes[trial].seconds

    def fastest_from(self, start: Trial) -> Trial:
        """Change one setting at a time, and return the fastest setting that this leads to."""
        best, is_better = start, True
        while is_better:
            is_better = False
            for axis in self._axes():
                rivals = [(seconds, trial) for trial in axis(best) if (seconds := self.seconds(trial)) is not None]
                now = self.seconds(best)
                seconds, trial = min(rivals, key=lambda pair: pair[0], default=(float("inf"), best))
                if now is None or seconds < now * (1 - _LEAST_GAIN):
                    is_better, best = trial != best, trial
        return best

    def again(self, trials: list[Trial], rounds: int) -> list[float]:
        """Time trials in turn, and return the median over the rounds for each."""
        found: dict[Trial, list[float]] = {trial: [] for trial in trials}
        for _ in range(rounds):
            for trial in trials:
                seconds = self._run(trial).seconds
                if seconds is None:
                    raise AdaptError(f"{' '.join(trial.cells())}: ran before, and does not now; is other work taking the memory?")
                found[trial].append(seconds)
        return [statistics.median(found[trial]) for trial in trials]

    def _axes(self) -> list[Callable[[Trial], Iterator[Trial]]]:
        tune = self._config.tune
        return [
            lambda trial: self._engines(trial, "zero_stage", tune.zero_stages),
            lambda trial: self._engines(trial, "micro_batch", self._micro_batches(trial)),
            lambda trial: self._engines(trial, "threads", tune.threads or sorted({1, share_of_cores(trial.engine.world_size)})),
            lambda trial: self._engines(trial, "activation_checkpointing", tune.activation_checkpointing),
            lambda trial: _offloads(trial, tune.optimizers),
        ]

    def _engines(self, trial: Trial, name: str, values: Sequence[Any]) -> Iterator[Trial]:
        """Yield a trial with each value of one setting of the engine; say, once, which cannot be."""
        for value in values:
            try:
                yield replace(trial, engine=replace(trial.engine, **{name: value}))
            except ConfigError as error:
                self.impossible[f"engine.{error}"] = None

    def _micro_batches(self, trial: Trial) -> list[int]:
        most = max(self._config.tune.batch_rows // trial.engine.world_size, 1)
        return self._config.tune.micro_batches or [1 << shift for shift in range(most.bit_length())]

    def _run(self, trial: Trial) -> Outcome:
        from pipelines.ranks.fresh_processes import on_ranks  # imports torch
        from pipelines.tools.tuned_steps import Batch, time_rank

        try:
            planned = self._planned(trial)
        except ConfigError as error:
            return Outcome(planned=None, failure=str(error))
        room = _room(trial.engine)
        if planned is not None and room is not None and planned > room:
            return Outcome(planned=planned, failure=f"not run: {room / 1e9:.1f} GB are there for a rank")
        tune = self._config.tune
        batch = Batch(rows=tune.batch_rows, tokens=tune.tokens, steps=tune.steps)
        assert trial.engine.threads is not None
        try:
            ranks: list[RankSteps] = on_ranks(
                trial.engine.world_size, trial.engine.threads, time_rank, self._subject, batch, trial.engine, trial.offload,
                str(self._scratch),
            )  # fmt: skip
        except ConfigError as error:
            return Outcome(planned=planned, failure=str(error))
        except AdaptError as error:
            if "died" not in str(error):
                raise
            return Outcome(planned=planned, failure="out of memory")
        failure = next((rank.failure for rank in ranks if rank.failure), None)
        peak = max(rank.peak for rank in ranks)
        if failure is None and trial.engine.memory_gb is not None and peak > trial.engine.memory_gb * 1e9:
            failure = f"took {peak / 1e9:.2f} GB, and engine.memory_gb is {trial.engine.memory_gb:g}"
        if failure is not None:
            return Outcome(planned=planned, peak=peak, failure=failure)
        slowest = [max(steps) for steps in zip(*(rank.seconds for rank in ranks), strict=True)]
        return Outcome(planned=planned, seconds=min(slowest), peak=peak, tokens=ranks[0].tokens, numbers=ranks[0].numbers)

    def _planned(self, trial: Trial) -> float | None:
        """Return the planned bytes of a rank. Raises ConfigError for what cannot be."""
        from adapt.checkpoint.weights import load_config  # these import torch
        from adapt.train.frozen_weights import check_frozen_weights, refuse_mapped_own
        from adapt.train.hf_memory_plan import plan_foreign
        from adapt.train.memory_checks import computes_on_cpus
        from adapt.train.memory_plan import OwnModel, plan_own

        check_optimizer(trial.engine, self._subject.optimizer, trial.offload)
        subject, tune, on_cpu = self._subject, self._config.tune, computes_on_cpus(trial.engine)
        if not isinstance(subject.model, GPTConfig) and is_hf_directory(subject.model):
            check_frozen_weights(subject.model, trial.offload, subject.trains, subject.lora, on_cpu=on_cpu)
            plan = plan_foreign(
                subject.model, trial.engine, trial.offload, subject.trains, subject.lora, tune.tokens,
                on_cpu=on_cpu, batch_rows=tune.batch_rows,
            )  # fmt: skip
            return plan.total if plan.training.passing is not None else None
        sizes = subject.model if isinstance(subject.model, GPTConfig) else load_config(subject.model)
        refuse_mapped_own(trial.offload)
        own = OwnModel.of(sizes, subject.trains)
        return plan_own(own, trial.engine, trial.offload, on_cpu=on_cpu, tokens=tune.tokens, batch_rows=tune.batch_rows).total


def show(config: PipelineConfig, point: str | None) -> None:
    """Print the trials, the fastest setting as overrides, and its gain; with `output`, write them there as JSON.

    Raises:
        ConfigError: nothing that is tried runs.
    """
    say_precision(config.engine.auto_precision())
    engine = config.engine.resolved()
    start = Trial(engine=replace(engine, threads=engine.threads or share_of_cores(engine.world_size)), offload=config.offload)
    if engine.hostfile is not None:
        raise ConfigError("engine.hostfile: settings are tried on this machine; leave it out, and take the ranks of one host")
    if config.tune.batch_rows < engine.world_size:
        raise ConfigError(f"tune.batch_rows: {config.tune.batch_rows} rows for {engine.world_size} ranks; give each one at least")
    subject = _subject(config, point)
    sys.stdout.write("  ".join(_HEADER) + "\n")
    lines: list[dict[str, Any]] = []

    def say(trial: Trial, outcome: Outcome) -> None:
        is_same = bool(outcome.numbers) and outcome.numbers == tuner.outcomes[start].numbers
        line = _line(trial, outcome, is_same)
        lines.append(line)
        sys.stdout.write("  ".join(str(cell).rjust(len(head)) for cell, head in zip(line.values(), _HEADER, strict=True)) + "\n")
        sys.stdout.flush()

    place = Path(config.run.dir)
    with writable(place):
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".tune-", dir=place) as scratch:
            tuner = Tuner(config, subject, Path(scratch), say)
            tuner.seconds(start)
            best = tuner.fastest_from(start)
            if tuner.seconds(best) is None:
                raise ConfigError(f"tune: nothing that was tried runs ({tuner.outcomes[start].failure}); take a smaller model")
            said, ratio = _compared(tuner, start, best, config.tune.rounds)
    for reason in tuner.impossible:
        sys.stdout.write(f"not tried: {reason}\n")
    sys.stdout.write(said + "\n")
    if config.output is not None:
        found = {"trials": lines, "best": best.overrides(start), "given": start.cells(), "ratio": ratio}
        with writable(Path(config.output).absolute().parent):
            write_atomically(Path(config.output), json.dumps(found, indent=1, ensure_ascii=False) + "\n")


def _compared(tuner: Tuner, start: Trial, best: Trial, rounds: int) -> tuple[str, float | None]:
    """Return what is to be said of the fastest setting, and seconds as given over its own, timed in turn."""
    if best == start:
        return "the setting as given is the fastest of these", None
    overrides = best.overrides(start)
    if tuner.seconds(start) is None:
        return f"fastest: {overrides}; the setting as given does not run", None
    given, found = tuner.again([start, best], rounds)
    if found > given * (1 - _LEAST_GAIN):
        return f"no clear gain: {overrides} takes {found:.3g} s a step in turn with {given:.3g} s as given", given / found
    return (
        f"fastest: {overrides}\n{found:.3g} s a step, {given:.3g} s as given, timed in turn: {given / found:.2f} times as fast",
        given / found,
    )


def _subject(config: PipelineConfig, point: str | None) -> Subject:
    """Return what is trained: the model of `checkpoint` or model=hf as adaptation would, else an untrained one as pretraining."""
    from pipelines.tools.tuned_steps import Subject  # imports torch

    objective = ObjectiveConfig(balance=config.objective.balance)
    if config.checkpoint is None and isinstance(config.model, GPTConfig):
        return Subject(
            model=config.model, trains=Trained.ALL, lora=config.continue_pretrain.lora, objective=objective,
            optimizer=config.pretrain.optimizer, seed=config.seed,
        )  # fmt: skip
    settings = config.continue_pretrain
    optimizer = replace(
        settings.optimizer, lr=settings.optimizer.lr or _LEAST_LR, warmup_share=settings.optimizer.warmup_share or 0.0
    )
    return Subject(
        model=weights_of(Run(config, point).base()), trains=settings.trains, lora=settings.lora, objective=objective,
        optimizer=optimizer, seed=config.seed,
    )  # fmt: skip


def _offloads(trial: Trial, values: Sequence[OptimizerIn]) -> Iterator[Trial]:
    """Yield a trial with the optimizer in each place that the ranks have.

    With one that is not paged, moments are in fp32 and weights in memory.
    """
    from adapt.train.memory_checks import computes_on_cpus  # imports torch

    for value in values:
        if value is OptimizerIn.CPU and computes_on_cpus(trial.engine):
            continue  # there it is none
        is_paged = value is OptimizerIn.PAGED
        moments = trial.offload.moments if is_paged else MomentFormat.FP32
        weights = trial.offload.trained_weights if is_paged else TrainedWeightsIn.MEMORY
        yield replace(trial, offload=replace(trial.offload, optimizer=value, moments=moments, trained_weights=weights))


def _room(engine: EngineConfig) -> float | None:
    """Return the bytes that a rank may take: `engine.memory_gb`, or its part of what is free; None where nobody says."""
    if engine.memory_gb is not None:
        return engine.memory_gb * 1e9
    import torch

    if torch.cuda.is_available():
        return float(min(torch.cuda.mem_get_info(device)[1] for device in range(torch.cuda.device_count())))
    free = [limit.n_bytes / (engine.world_size if limit.is_shared else 1) for limit in memory_limits()]
    if _MEMORY_FILE.is_file():
        lines = dict(line.split(":", 1) for line in _MEMORY_FILE.read_text(encoding="ascii").splitlines())
        free.append(int(lines["MemAvailable"].split()[0]) * 1024 / engine.world_size)
    return min(free, default=None)


def _line(trial: Trial, outcome: Outcome, is_same: bool) -> dict[str, Any]:
    seconds = outcome.seconds
    return {
        **dict(zip(_HEADER[:5], trial.cells(), strict=True)),
        "s/step": "-" if seconds is None else f"{seconds:.3f}",
        "tokens/s": "-" if seconds is None else f"{outcome.tokens / seconds:.0f}",
        "GB a rank": f"{outcome.peak / 1e9:.2f}" if outcome.peak else "-",
        "plan GB": "-" if outcome.planned is None else f"{outcome.planned / 1e9:.2f}",
        "same": "-" if seconds is None else ("yes" if is_same else "no"),
        "": outcome.failure or "",
    }
