"""Weighted training with the Hugging Face Trainer and TRL. Needs `transformers`, and `trl` for SFTTrainer.

class Weighted(WeightedLossMixin, Trainer): ...       # transformers.Trainer or trl.SFTTrainer

Weighted(model=model, args=args, train_dataset=exact_prep.open(DIR)).train()

mixin.py     WeightedLossMixin: sets what the weighted loss needs (collator, unused columns, scaling)
checks.py    what it refuses: settings with which weights would be lost or documents would see each other
dataset.py   hugging_face_dataset, for trainers that accept only a `datasets.Dataset`
"""

from exact_prep.integrations.transformers.dataset import hugging_face_dataset
from exact_prep.integrations.transformers.mixin import WeightedLossMixin

__all__ = ["WeightedLossMixin", "hugging_face_dataset"]
