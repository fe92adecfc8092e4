"""What Brain-Score needs to score a Network; takes ``pip install 'cnnf-brain[brainscore]'``."""

from cnnf_brain.brainscore.wrapper import IterationWrapper, iteration_wrapper, wrapper_identifier

__all__ = ["IterationWrapper", "iteration_wrapper", "wrapper_identifier"]
