"""Caches of sub-layer outputs and tokens, and the schedules and routers that are learned for
them."""
