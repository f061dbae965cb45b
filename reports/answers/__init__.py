"""What a run recommends, and how two runs differ."""
