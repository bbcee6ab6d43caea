"""Sources at work: the extra forward passes of contexts and models, their caches, and the rows they run on."""
