"""A small benchmark as its YAML file would be read: 9 trials of 4 steps."""

from __future__ import annotations

from typing import Any

__all__ = ["CONTENT", "TRIALS"]

CONTENT: dict[str, Any] = {
    "name": "tiny",
    "dataset": "mnist-digits",
    "backbone": "digits-resnet",
    "priors": ["l2-sp"],
    "n": [100],
    "seeds": [1001],
    "methods": {
        "map-gs": {"learning_rates": [0.1, 0.01], "weight_decays": [0.01, 0], "retrain": "best"},
        "de-elbo": {"learning_rates": [0.1, 0.01]},
        "elbo": {"learning_rates": [0.1, 0.01]},
    },
    "training": {"steps": 4, "batch_size": 50},
    "resources": {"slots": 2},
}
TRIALS = 9
