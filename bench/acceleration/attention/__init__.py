"""Sparse attention: masks over tiles of tokens, one operation for all of them, and where it is put
in. Here: what its methods declare without torch."""

KERNELS = ("auto", "dense", "flex")
"""`flex`: torch's flex_attention, compiled, which leaves out blocks; `dense`: attention under a
mask, which computes all; `auto`: flex on a GPU, else dense."""
DENSE_FIRST_STEPS = 0.2
"""Share of the steps, at the beginning, that attend to everything, where authors print none for a
rule: between those of SVG2's scripts (0.04 to 0.3) and Radial Attention's (12 of 50)."""
ON_ATTENTION = {
    "attended-tokens": "decides by tiles of tokens which of them attend to which, and merged ones lie "
    "in none"
}
"""What sparse attention relies on (`Method.relies_on`)."""
