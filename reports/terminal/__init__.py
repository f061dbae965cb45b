"""Tables of a run in a terminal."""
