"""Ranges of numeric settings, in a module without torch, so that a configuration is checked before torch is loaded."""

MIN_SIGMA = 1e-12
"""Least standard deviation of the posterior: below it sigma^2 is lost in float32."""
MIN_WEIGHT_DECAY, MAX_WEIGHT_DECAY = 1e-8, 1.0
"""Range of a learned weight decay. Below, it has no effect; above, at common learning rates one step of weight decay
overshoots the prior's mean."""
