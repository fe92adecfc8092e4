"""A Network as a model of Brain-Score, and its plugin; takes ``pip install 'cnnf-brain[brainscore]'``."""

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # of brainscore-core's own class, when it is first imported
    try:
        from cnnf_brain.brainscore.commitment import IterationCommitment, load_plugin
        from cnnf_brain.brainscore.wrapper import IterationWrapper, iteration_wrapper, wrapper_identifier
    except ImportError as error:
        if not str(error.name).startswith("brainscore"):
            raise
        raise ImportError(
            f"cnnf_brain.brainscore needs brainscore-vision ({error}): pip install 'cnnf-brain[brainscore]'"
        ) from error

__all__ = ["IterationCommitment", "IterationWrapper", "iteration_wrapper", "load_plugin", "wrapper_identifier"]
