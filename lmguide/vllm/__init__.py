"""Guidance for each request of a vLLM server: a plugin that vLLM finds by its entry points, and nothing to import.

`docs/vllm.md` has the user's side; ARCHITECTURE.md has how a guided request flows.
"""
