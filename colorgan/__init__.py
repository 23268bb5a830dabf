"""Conditional-GAN colourisation pretraining, checkpoints and transfer."""

import os

# OpenMP's threads wait for each other by spinning, some 300,000 times by default. Where other work
# has taken one of the cores, the others spin for milliseconds after every operation: a small
# network trained 3 to 6 images/s on two busy cores. With 1,000 it trained 22 to 76 there, and 147
# against 153 on idle ones (OMP_WAIT_POLICY=PASSIVE: 21 to 75, and 135). It must be set before torch
# is loaded.
if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = "1000"
