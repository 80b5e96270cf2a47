"""What trainers import: the reader, and a thin door into each framework.

    columns.py       what a trainer wants, derived from a row's stored columns; NumPy only
    reader.py        a packed dataset as rows: `exact_prep.open(DIR)`
    lookup.py        weights.json as a lookup table: `exact_prep.load_weights`
    collate.py       rows to one batch of arrays
    order.py         which rows, when and on which rank: shuffling, sharding, exact resume
    torch/           datasets, loader, collator, weighted losses, the check that documents are isolated
    transformers.py  the Trainer mixin, for transformers.Trainer and TRL's SFTTrainer
    jax.py           batches for JAX (through grain, or NumPy alone) and the weighted loss
    exporters/       other trainers' files, one module per format

No framework is imported before its module is. Nothing here packs or weighs.
"""
