"""Style transfer math: losses, VGG features, optimizers and one compiled step; no I/O and no clock."""
