"""What surrounds a run: command line, run directory, processes."""
