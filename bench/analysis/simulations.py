"""What intervals cover and how often verdicts err, in simulations that know the truth. numpy only.

    python -m ditbench.analysis.simulations            the table, minutes on one core
    python -m ditbench.analysis.simulations --quick    a tenth of the repetitions

A row of kind `coverage` is the share of runs in which a nominal 95 % interval holds the truth: 93
to 97 %, but for what `note` says: more where scores seldom differ (discrete), less where few
prompts have to show a long tail (skewed). A row of kind `level` is the share of runs that say what
is not so, beside the nominal level that it must not pass. `se` is the binomial standard error of
the share.
"""

from __future__ import annotations
