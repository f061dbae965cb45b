"""Figures, one module each. No torch."""
