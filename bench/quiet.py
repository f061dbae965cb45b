"""Keep what libraries say in passing (import warnings, deprecations, progress bars) off the screen.
Never imports torch by itself."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """Silence warnings, and log messages up to WARNING, of everything inside the block. Errors
    still come through.

    Process-wide while the block lasts, and put back as it was at its end.
    """
    disabled = logging.root.manager.disable
    bars = os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS")
    # read by huggingface_hub when it is first imported
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.disable(max(disabled, logging.WARNING))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        if bars is None:
            os.environ.pop("HF_HUB_DISABLE_PROGRESS_BARS", None)
