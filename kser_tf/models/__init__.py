"""Ranking models: from raw features to a logit. They need TFRS, and so Keras 2."""
