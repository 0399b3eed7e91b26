"""bench: races methods for finding the strength of L2 regularization, under one Ray Tune scheduler."""
