"""Evaluation: from a model and data to a list of result records."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submod_attrs={
        "autoencoders": ["evaluate_autoencoder"],
        "distances": ["frechet_distance", "neighbour_measures"],
        "feature_spaces": ["DigitClassifier", "RandomNetwork"],
        "generators": ["evaluate_generator"],
        "image_quality": ["mean_squared_error", "psnr", "ssim"],
        "language_models": ["evaluate_language_model"],
        "masked_language_models": ["evaluate_masked_language_model"],
        "records": [
            "Record",
            "bootstrap_interval",
            "protocols",
            "read_records",
            "table",
            "write_records",
        ],
        "recommender_baselines": [
            "EASE",
            "ContentKNN",
            "ItemKNN",
            "Popularity",
            "choose",
        ],
        "recommenders": ["evaluate_recommender"],
        "timing": ["sampling_speed"],
    },
)
