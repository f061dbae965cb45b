"""Students of few steps: recordings of the teacher, objectives, training, sampling."""
