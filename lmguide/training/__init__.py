"""The synthetic corpus and the training of the small bundled models: `python -m lmguide.training --out DIR`.

Knows nothing about guidance methods: it only makes models whose guided distribution is known in closed form.
"""
