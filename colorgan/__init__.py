"""Conditional-GAN colourisation pretraining, checkpoints and transfer."""
