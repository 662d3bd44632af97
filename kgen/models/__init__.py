"""The models, one file each. Importing this package registers them with Keras."""

from kgen.models.base import GenerativeModel, Signature
from kgen.models.loading import load
from kgen.models.vae import VAE

__all__ = ["GenerativeModel", "Signature", "VAE", "load"]
