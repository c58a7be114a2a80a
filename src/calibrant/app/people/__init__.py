"""Terminal sessions with people: compare, label, red-team."""
