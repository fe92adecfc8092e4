"""The commands of the trainers: flags -> settings -> ``cnnf_brain.trainer``."""
