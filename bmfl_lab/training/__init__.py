"""Training recipes on accelerate, with checkpoints that resume to the bit."""
