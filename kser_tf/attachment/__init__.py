"""Attaching the knowledge extractor to ranking models that this project did not write, and taking it off again."""
