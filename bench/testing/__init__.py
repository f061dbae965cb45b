"""The contract of methods, and pipelines to try it on."""

from ditbench.testing.contract import Check, check_method
from ditbench.testing.subjects import KINDS, Subject, tiny
from ditbench.testing.trained import check_models

__all__ = ["KINDS", "Check", "Subject", "check_method", "check_models", "tiny"]
