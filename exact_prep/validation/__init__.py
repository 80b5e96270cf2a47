"""Paired training: runs that differ only in the per-token weight, with the controls that such a claim needs.

    synthetic, corpus   data as batches: key-value recall, or a dataset that exact-prep packed
    model, attention    the small decoder, attention inside segments
    huggingface         a causal LM from disk instead
    arms, train         what differs between runs, and the training that does not
    probes, ruler       held-out loss by bucket, recall by distance, evidence ablation; a RULER-style suite
    nolima, harness     NoLiMa from the user's copy; tasks of lm-evaluation-harness
    plan, experiment    what is run: bases, arms and seeds; how: run by run, restartable
    measures            what is measured on a trained model
    compare, results    paired differences with intervals, and how they are read
    plots               one line per arm

The reading was decided before any run: EXACT helps only where it beats both `uniform` and `lr` at contexts or distances
in the tail, with a 95 % interval over seeds that excludes zero.
"""
