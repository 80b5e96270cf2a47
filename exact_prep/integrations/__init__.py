"""Weighted training with a framework: one module per framework, on top of `exact_prep.reader`.

    torch/           loader, collator, weighted losses, the check that documents are isolated
    transformers/    the Trainer mixin, for transformers.Trainer and TRL's SFTTrainer
    torchtitan.py    a data loader and a loss for torchtitan's configs
    jax.py           batches for JAX (with or without grain) and the weighted loss

A framework is imported only when its module is. Reading datasets without a framework is in `exact_prep.reader`, files
in the formats of other tools are in `exact_prep.layouts`. Nothing here packs or weighs.
"""
