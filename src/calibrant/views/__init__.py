"""Records to figures and pages. Needs no torch and no model."""
