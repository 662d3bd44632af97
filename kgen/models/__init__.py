"""The models, one file each. Importing this package makes Keras know what is saved."""

import kgen.nn.gradients  # noqa: F401 (a compiled model's file names its Adam)
from kgen.models.bert import BERT
from kgen.models.cfgan import CFGAN
from kgen.models.gan import GAN
from kgen.models.gpt import GPT
from kgen.models.multvae import MultVAE
from kgen.models.recvae import RecVAE
from kgen.models.shared.loading import load
from kgen.models.shared.model import GenerativeModel
from kgen.models.shared.signatures import Signature
from kgen.models.vae import VAE

__all__ = [
    "BERT",
    "CFGAN",
    "GAN",
    "GPT",
    "GenerativeModel",
    "MultVAE",
    "RecVAE",
    "Signature",
    "VAE",
    "load",
]
