"""Images to train on and to validate with: MNIST's IDX files, ImageNet's folders and tar shards."""
