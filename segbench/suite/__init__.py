"""A suite: what is compared, on which data, trained, scored and profiled how. YAML in, runs out; no torch."""
