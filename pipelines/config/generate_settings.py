"""Settings of `pipelines.generate`: the prompts, and how they go on."""

from __future__ import annotations

from dataclasses import dataclass

from adapt.core.settings import setting
from adapt.model.sampling_config import GenerationConfig


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(GenerationConfig):
    """Continuing prompts with a model."""

    prompt: str | None = setting(
        None, "The one prompt to continue; prompt=TEXT is short for it.", form="text", hint="null takes the prompts of input="
    )
    field: str = setting("prompt", "Field of the rows of input= that holds the prompt.", form="field")
