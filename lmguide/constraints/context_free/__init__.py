"""Context-free grammars on a canvas: whether what stands on it can still become a text of the grammar, and which."""
