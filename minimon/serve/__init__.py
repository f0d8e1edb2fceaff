"""A monitor at work: scores of a stream, thresholds."""
