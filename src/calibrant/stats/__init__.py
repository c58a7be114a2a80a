"""Floor 1: intervals, paired tests, corrections for many tests, worst-case bounds."""
