"""Training of guides on a user's own texts: GeDi's class-conditional language models, FUDGE's classifiers of prefixes.

`lmguide train` is the way in. Needs the packages of the extra `train`.
"""
