"""The families of transformers ditbench knows, a file each, which holds the `FAMILY` of its
name."""

ORDER = ("dit", "pixart", "flux", "wan", "sd3")
"""As tables list them."""
