"""Tasks for lm-eval, as YAML, with the functions they name. `harness.manager` knows the folder."""
