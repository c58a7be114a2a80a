"""Floor 3: records to figures and pages. Needs no torch and no model."""
