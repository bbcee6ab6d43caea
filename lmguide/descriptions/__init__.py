"""Descriptions of rewards for models that write from left to right: contexts without tensors, one module per kind."""
