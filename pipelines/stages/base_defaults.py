"""How a base is trained where settings leave it open: by its kind and its number of weights.

A small base of this project is a few hours of training away from random weights and takes large steps. A base that others
pretrained on far more text loses its language under such steps: a 135M model at learning rate 3e-4 continued every text with the
prompt's words after nine steps. It gets the learning rates of full fine-tuning, a longer warm-up, and no loss on the
prompt's constant words, so that nothing teaches it to say them everywhere. The loss on the text counts a tenth: at the same cost in
general text it then reads the task's texts about as well, and learns far more of the labels. It is kept near the base by the
divergence from it on texts, a quarter of which it says itself: so nearly all of what it learns of the task may stay.
"""

from __future__ import annotations

from dataclasses import dataclass

from adapt.checkpoint.hf_directory import is_hf_directory
from adapt.core.artifacts import Artifact
from adapt.objective_config import ObjectiveConfig
from adapt.train.train_config import Trained
from pipelines.config.adapt_settings import AdaptConfig
from pipelines.config.schema import GateConfig
from pipelines.stages.models import weights_of

_LORA_LR = 3e-4
_SMALL_OWN = 100_000_000
# (weights up to, learning rate, epochs) of pretrained bases: tried at 135M, larger ones by the usual settings of fine-tuning.
_PRETRAINED = ((300_000_000, 3e-5, 2.0), (3_000_000_000, 2e-5, 2.0), (None, 1e-5, 1.0))
_LARGEST_RISE = 0.03  # of perplexity
_REPLAY_SHARE = 0.25


@dataclass(frozen=True, kw_only=True)
class BaseDefaults:
    """What open settings come to for one base."""

    lr: float = 3e-4
    warmup_share: float = 0.1
    epochs: float = 2.0
    context_weight: float = 1.0
    prompt_weight: float = 1.0
    divergence_weight: float = 0.0
    is_guarded: bool = False

    @classmethod
    def of(cls, base: Artifact) -> BaseDefaults:
        """Return those of a base."""
        from adapt.checkpoint.weights import count_weights  # imports torch

        place = weights_of(base)
        n_weights, is_foreign = count_weights(place), is_hf_directory(place)
        if not is_foreign and n_weights <= _SMALL_OWN:
            return cls()
        lr, epochs = next((lr, epochs) for most, lr, epochs in _PRETRAINED if most is None or n_weights <= most)
        if not is_foreign:
            return cls(lr=lr, warmup_share=0.2, epochs=epochs)
        return cls(
            lr=lr, warmup_share=0.2, epochs=epochs, context_weight=0.1, prompt_weight=0.0, divergence_weight=1.0, is_guarded=True
        )

    def settings(self, settings: AdaptConfig, *, has_corpus: bool) -> AdaptConfig:
        """Return settings with nothing left open; a base from elsewhere replays its own text where there is no corpus."""
        # Factors of low rank take the steps of small models: they start at no change, and the base itself stays.
        lr = _LORA_LR if settings.trains is Trained.LORA else self.lr
        return settings.settled(
            lr=lr,
            warmup_share=self.warmup_share,
            epochs=self.epochs,
            replay_share=_REPLAY_SHARE if self.is_guarded and not has_corpus else 0.0,
            divergence_weight=self.divergence_weight,
        )

    def objective(self, objective: ObjectiveConfig) -> ObjectiveConfig:
        """Return an objective with nothing left open."""
        return objective.settled(context=self.context_weight, prompt=self.prompt_weight)

    def gate(self, gate: GateConfig) -> GateConfig:
        """Return a gate with nothing left open."""
        return gate.settled(_LARGEST_RISE if self.is_guarded else None)


def said(settings: AdaptConfig, objective: ObjectiveConfig) -> str:
    """Return in words how a base is trained, where settings left it open."""
    prompt = "prompt words not trained" if not objective.weights.prompt else f"prompt words at weight {objective.weights.prompt:g}"
    context = f"text at weight {objective.weights.of('context'):g}"
    kept = []
    if settings.divergence_weight:
        kept.append(f"kept near the base at weight {settings.divergence_weight:g}")
    if settings.replay_share:
        kept.append(f"{100 * settings.replay_share:g} % of the rows replayed")
    return (
        f"learning rate {settings.optimizer.lr:g}, warm-up {100 * (settings.optimizer.warmup_share or 0):g} % of the steps, "
        + ", ".join([f"{settings.epochs:g} epochs", context, prompt, *kept])
    )
