"""Bound rewards of models that write from left to right: from a description to log r(token | prefix), step by step."""
