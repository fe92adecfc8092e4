"""CNN-F and its neural predictivity: model, exact PLS, statistics.

In Python: ``compare(model, baseline, recordings, layers)``. On the command line: ``python -m cnnf_brain.compare --layers V4 IT``.
"""

from typing import TYPE_CHECKING, Any

from cnnf_brain.activations import list_layers
from cnnf_brain.compare import Comparison, Scoring, compare
from cnnf_brain.images import Preprocessing
from cnnf_brain.model.cnnf import CNNF
from cnnf_brain.model.layers import FeatureNorm
from cnnf_brain.model.settings import FeedbackSettings
from cnnf_brain.model.state import FeedbackResult
from cnnf_brain.model.zoo import alexnet, from_torchvision, small_net, vgg16
from cnnf_brain.networks import Network, load_network
from cnnf_brain.recordings import Recordings, load_recordings
from cnnf_brain.sweep import Study, sweep
from cnnf_brain.trainer.checkpoint import hub_folder
from cnnf_brain.types import LayerAt
from cnnf_brain.verify import verify

if TYPE_CHECKING:
    from cnnf_brain.predictivity.estimator import PLSRegression

__version__ = "0.2.0"

__all__ = [
    "CNNF",
    "Comparison",
    "FeatureNorm",
    "FeedbackResult",
    "FeedbackSettings",
    "LayerAt",
    "Network",
    "PLSRegression",
    "Preprocessing",
    "Recordings",
    "Scoring",
    "Study",
    "alexnet",
    "compare",
    "from_torchvision",
    "hub_folder",
    "list_layers",
    "load_network",
    "load_recordings",
    "small_net",
    "sweep",
    "verify",
    "vgg16",
]


def __getattr__(name: str) -> Any:
    if name == "PLSRegression":  # imports scikit-learn, which nothing else here needs to be imported
        from cnnf_brain.predictivity.estimator import PLSRegression

        return PLSRegression
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
