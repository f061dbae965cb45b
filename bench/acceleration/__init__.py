"""What methods share: token caches and schedules, students of few steps, quantization."""
