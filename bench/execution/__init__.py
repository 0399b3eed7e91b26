"""One trial from its specification to its record, through `deelbo`; knows nothing of Ray."""
