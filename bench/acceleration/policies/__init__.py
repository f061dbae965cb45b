"""Policies that decide for each sample and step what is computed, and their training by
reinforcement (GRPO)."""
