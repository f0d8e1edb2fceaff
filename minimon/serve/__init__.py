"""A monitor at work: in a program, over a stream of rows, with a threshold, in ControlArena and Inspect."""
