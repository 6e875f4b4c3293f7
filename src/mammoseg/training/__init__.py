"""The training loop, its checkpoints and seeds. Names no stage: a stage hands in a `Task`."""
