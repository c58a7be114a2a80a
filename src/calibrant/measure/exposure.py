"""Exposure: how much easier a planted secret is to guess for whoever holds the model. Privacy by canaries.

Paper: Carlini et al. 2019, "The Secret Sharer" (arXiv 1802.08232). A canary's secret was drawn by lot from a
space R; the model scores the sentence with every secret of R; rank 1 is the likeliest.

    exposure = log2 |R| - log2 rank                                                (their definition 2)

1. Spaces of up to ``enumerate_to`` secrets are scored whole. Of larger ones ``samples`` secrets are drawn: the
   share that is likelier gives bounds (Clopper-Pearson), and a skew-normal law fitted to their log-probs (their
   section 4.3) gives the value where it lies within those bounds.
2. Where the secret was never planted its rank is uniform, so P(exposure >= x) = 2^-x and the mean is about 1.44
   bits. ``p_value`` is Fisher's test (1932) of all planted canaries against that; controls, planted 0 times, get
   the same test, and must not fail it.
3. Ties count half in the exposure and against the canary in the p-value: a model that cannot tell secrets apart
   has exposure about 1 bit, not log2 |R|.
4. Extraction is exact: the model is given all that stands before the secret, and writes it or does not.

Command: ``calibrant run STUDY.toml`` with ``use = "measure.exposure"`` and inputs model, canaries.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Sequence
from itertools import batched

import numpy as np
from pydantic import Field
from scipy.stats import chi2, skew, skewnorm

from calibrant.core import (
    Chat,
    Completion,
    Estimate,
    Frozen,
    InputError,
    NumericalError,
    Quiet,
    Result,
    Run,
    Sampling,
    ScoringLM,
    digest,
    point,
    technique,
    unknown,
)
from calibrant.core.digest import plain
from calibrant.data.canaries import Canaries, Canary
from calibrant.models.judging import same_number, tokens
from calibrant.stats import mean, proportion_interval, rate

_BATCH = 256
_LEVEL = 0.95
