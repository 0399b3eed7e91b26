"""The training loop that every objective shares, and everything around it."""
