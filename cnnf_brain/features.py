"""The version of the features that this software makes."""

FEATURES_VERSION = 1
