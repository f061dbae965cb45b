"""The contract of methods, and pipelines to try it on."""

from ditbench.testing.contract import Check, check_method, check_models
from ditbench.testing.subjects import KINDS, Subject, tiny

__all__ = ["KINDS", "Check", "Subject", "check_method", "check_models", "tiny"]
