"""One batch on one device: preprocessing, targets, optimization, checkpoints, publishing."""
