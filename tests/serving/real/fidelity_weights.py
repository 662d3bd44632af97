"""Weights for torch-fidelity that nobody has trained: python fidelity_weights.py FILE.

Its own are a download. Without them it measures nothing, but reads and runs the same.
"""

import sys

import torch
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3


class Untrained(FeatureExtractorInceptionV3):
    """The network as it is made."""

    def load_state_dict(self, *args, **options):
        """Loads nothing."""


file = sys.argv[1]
torch.save({}, file)
torch.manual_seed(0)
features = ["2048", "logits_unbiased"]
network = Untrained("untrained", features, feature_extractor_weights_path=file)
torch.save(network.state_dict(), file)
