"""Pseudo-labelling and zero-shot classification with a causal language model."""

from pseudo_label.predictor import Prediction, Predictor, load

__all__ = ["Prediction", "Predictor", "load"]
