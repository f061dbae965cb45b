"""Latency, memory and floating-point operations."""
