"""What trainers share: runs on disk, checkpoints, optimizers, packing."""
