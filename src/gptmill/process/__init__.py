"""A stage as a process: it answers signals, ends with its parent, and owns what it writes."""
