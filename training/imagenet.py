"""Train VGG-16 or AlexNet on ImageNet: the same as ``cnnf-brain train imagenet``, which says how."""

import sys

from cnnf_brain.train.imagenet import main

if __name__ == "__main__":
    sys.exit(main(program="python training/imagenet.py"))
