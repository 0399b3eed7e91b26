"""The trained models that methods chose: kept during a run, and exported."""
