"""Keep runs on the disk: their directories, their checkpoints, and the records of finished ones."""
