"""Statistics of finished trials: DataFrames in, DataFrames out."""
