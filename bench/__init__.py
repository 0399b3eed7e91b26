"""bench: races methods for finding the strength of L2 regularisation, under one Ray Tune scheduler."""
