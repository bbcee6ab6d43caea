"""Constraints as automata over tokens, and exact inference over the rows of a canvas under them."""
