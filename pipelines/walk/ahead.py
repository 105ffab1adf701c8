"""A walk that is about to start, as its checks look at it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from adapt.checkpoint.hf_directory import is_hf_directory
from adapt.model.config import HFConfig
from pipelines.config.label_settings import Teacher
from pipelines.config.schema import PipelineConfig
from pipelines.stages.run import Run
from pseudo_label.tasks import TaskConfig


@dataclass(frozen=True, kw_only=True)
class Ahead:
    """A walk that is about to start: its stages by name, in their order, its tasks, and the keys given on the command line."""

    run: Run
    stages: list[str]
    tasks: list[TaskConfig]
    given: frozenset[str]

    @property
    def config(self) -> PipelineConfig:
        return self.run.config

    def has(self, *stages: str) -> bool:
        """Whether one of these stages will run."""
        return any(stage in self.stages for stage in stages)

    @property
    def makes_its_base(self) -> bool:
        """Whether tasks start from a base that this walk pretrains."""
        return self.has("pretrain") and self.config.checkpoint is None and not isinstance(self.config.model, HFConfig)

    @property
    def has_foreign_base(self) -> bool:
        """Whether tasks start from a Hugging Face model."""
        if self.config.checkpoint is not None:
            return is_hf_directory(Path(self.config.checkpoint))
        return isinstance(self.config.model, HFConfig)

    @property
    def predicts_directly(self) -> bool:
        """Whether rows are labelled by the export at `checkpoint`, and not by one of this run."""
        return self.has("predict") and not self.has("export") and self.config.checkpoint is not None

    @property
    def is_fitted_at_evaluation(self) -> bool:
        """Whether evaluation reads unlabeled rows."""
        settings = self.config.evaluate
        methods = {*settings.methods, settings.method}
        return bool(settings.criteria) or any(method.needs_rows or method.needs_lexical for method in methods)

    @property
    def asks_model_to_label(self) -> bool:
        """Whether prompts label unlabeled rows."""
        return self.has("label_tree") or (self.has("pseudo_label") and Teacher.MODEL in self.config.pseudo_label.teachers)
