"""Floor 1: the rows that techniques take, and their readers."""
