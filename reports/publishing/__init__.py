"""The tables and figures of README and of published runs."""
