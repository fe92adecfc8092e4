"""CNN-F and its neural predictivity: model, exact PLS, statistics. ``python -m cnnf_brain.compare --layers V4 IT``."""

from cnnf_brain.model.cnnf import CNNF
from cnnf_brain.model.layers import FeatureNorm
from cnnf_brain.model.settings import FeedbackSettings
from cnnf_brain.model.state import FeedbackResult
from cnnf_brain.model.zoo import alexnet, from_torchvision, small_net, vgg16
from cnnf_brain.predictivity.estimator import PLSRegression
from cnnf_brain.types import LayerAt

__version__ = "0.1.0"

__all__ = [
    "CNNF",
    "FeatureNorm",
    "FeedbackResult",
    "FeedbackSettings",
    "LayerAt",
    "PLSRegression",
    "alexnet",
    "from_torchvision",
    "small_net",
    "vgg16",
]
