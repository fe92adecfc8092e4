"""Train the small net on MNIST or Fashion-MNIST: the same as ``cnnf-brain train small``, which says how."""

import sys

from cnnf_brain.train.small import main

if __name__ == "__main__":
    sys.exit(main(program="python training/mnist.py"))
