"""The models: which there are, how they are loaded, sampled and taken apart."""

from ditbench.models.loading import load
from ditbench.models.table import Model, models, select

__all__ = ["Model", "load", "models", "select"]
