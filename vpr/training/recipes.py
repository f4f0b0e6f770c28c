"""Recipes of training, by name (--recipe): flags, of which those that are typed win."""

from typing import Any

_PLACES = {"loss": "multi-similarity", "imagesPerPlace": 4}
RECIPES: dict[str, dict[str, Any]] = {
    "paper": {},  # the defaults: NetVLAD's (Arandjelovic et al., 2016)
    "gsv": {  # GSV-Cities' (Ali-bey et al., 2022); their code drops the rate after epochs 5, 10 and 15 alone
        **_PLACES, "batchSize": 100, "optim": "ADAM", "lr": 2e-4, "weightDecay": 0.0, "warmup": 600, "lrStep": 5,
        "lrGamma": 0.3, "nEpochs": 30, "imageSize": [320, 320],
    },
    "dinov2": {  # SALAD's (Izquierdo and Civera, 2024): the last four blocks are trained
        **_PLACES, "arch": "vit_base_patch14_dinov2", "batchSize": 60, "optim": "ADAMW", "lr": 6e-5,
        "weightDecay": 9.5e-9, "schedule": "linear", "nEpochs": 4, "imageSize": [224, 224],
    },
    "adapt": {  # to few images of one's own: the pooling alone, on what the frozen backbone gives
        **_PLACES, "batchSize": 32, "optim": "ADAMW", "lr": 1e-3, "weightDecay": 1e-4, "schedule": "cosine",
        "warmup": 20, "trainFrom": "pool",
    },
    "distill": {  # a student's of a teacher, by --mode=distill
        "loss": "distill", "batchSize": 64, "optim": "ADAMW", "lr": 1e-3, "weightDecay": 1e-4, "schedule": "cosine",
        "warmup": 20, "nEpochs": 10,
    },
}  # fmt: skip
