"""Put ConvNeXt under existing pipelines; start reading in ``swap.py``."""
