"""Context-free grammars with counters, for the formats of test inputs."""
