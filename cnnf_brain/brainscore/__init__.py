"""What Brain-Score needs to score a Network; takes ``pip install 'cnnf-brain[brainscore]'``."""

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # of brainscore-core's own class, when it is first imported
    from cnnf_brain.brainscore.commitment import IterationCommitment, load_plugin
    from cnnf_brain.brainscore.wrapper import IterationWrapper, iteration_wrapper, wrapper_identifier

__all__ = ["IterationCommitment", "IterationWrapper", "iteration_wrapper", "load_plugin", "wrapper_identifier"]
