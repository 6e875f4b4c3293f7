"""Evaluation: saved findings against a dataset's truth. Never imports torch, never runs a model."""

from mammoseg.evaluation.evaluate import Evaluation, EvaluationOptions, evaluate, evaluate_command

__all__ = ["Evaluation", "EvaluationOptions", "evaluate", "evaluate_command"]
