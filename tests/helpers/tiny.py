"""A small benchmark as its YAML file would be read: 9 trials of 4 steps."""

from typing import Any

from bench.trials.spec import TrialSpec

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
SPEC = TrialSpec(
    dataset="mnist-digits",
    backbone="digits-resnet",
    head=None,
    method="map-gs",
    prior="l2-sp",
    n=100,
    seed=1001,
    stage="tune",
    learning_rate=0.01,
    weight_decay=0.01,
    head_weight_decay=0.01,
    prior_scale=None,
    kappa=None,
    steps=4,
    batch_size=50,
    momentum=0.9,
    clip_norm=1.0,
    sigma=1e-4,
    posterior_passes=2,
    series_points=2,
)
"""A tuning trial of the grid search, of four steps."""
