"""Floor 1: attempts from and for other tools. Pure: what a file says in, what a file shall say out."""
