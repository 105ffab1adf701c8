"""Pseudo-labelling and zero-shot classification with a causal language model.

What answers is imported when it is first asked for: reading tasks and rows needs no model.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pseudo_label.predictor import Prediction, Predictor, load

__all__ = ["Prediction", "Predictor", "load"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    from pseudo_label import predictor

    return getattr(predictor, name)
