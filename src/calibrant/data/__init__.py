"""The rows that techniques take, and their readers."""
