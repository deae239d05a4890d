"""State that survives a crash: the run directory, checkpoints, the journal, a device's own state."""
