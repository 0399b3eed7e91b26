"""No test of the examples may ask the network."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
