"""A trained model for a person's own data: what is run for it, its model card, and predictions."""
