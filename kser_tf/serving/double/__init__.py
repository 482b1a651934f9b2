"""A double of TensorFlow Serving, for tests of clients."""
