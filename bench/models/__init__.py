"""The models: which there are, how they are loaded, sampled and taken apart."""

from ditbench.models.family import Family, Kind, register_family
from ditbench.models.loading import load
from ditbench.models.table import Model, models, register_model, select

__all__ = [
    "Family",
    "Kind",
    "Model",
    "load",
    "models",
    "register_family",
    "register_model",
    "select",
]
