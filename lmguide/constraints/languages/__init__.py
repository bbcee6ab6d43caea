"""Programming languages: their grammars, and how white space and lines come into them."""
