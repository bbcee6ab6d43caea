"""Measuring guidance: benchmarks, and what people read of them."""
