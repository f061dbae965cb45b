"""Metrics whose packages need a Python environment of their own: `outside` asks one, `inside` is the script that answers in it."""
