"""Which trial runs next and what is left of a benchmark; knows nothing of Ray."""
