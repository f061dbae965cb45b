"""A GPU that is not there: shapes only, and what a real one would need for them."""
