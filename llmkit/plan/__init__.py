"""What a training will take before it is begun: memory by kind, floating-point operations, disk, time."""
