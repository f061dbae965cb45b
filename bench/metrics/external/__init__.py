"""Metrics whose packages need a Python environment of their own: `client` asks one, `worker` is
the script that answers in it."""
