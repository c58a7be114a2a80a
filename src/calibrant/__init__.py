"""Calibrant: train, understand, attack, oversee, defend and gate language models, with evidence."""

import sys

from calibrant._moved import Moved

__version__ = "0.1.0"

sys.meta_path.append(Moved())
