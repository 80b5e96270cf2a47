"""`exact-prep validate`: trains models that differ only in the per-token weights, with controls, and compares them.

Read the files in this order.

    What is run
        tiers              three sizes of experiment: smoke, example, gpu
        arms               the arms: uniform, exact, and the controls
        jobs               an Experiment (what the user asked for) and its Jobs (one base or arm, with one seed)
        experiment         runs the jobs, continues after an interruption, writes results.json
    Data
        training_batches   Batch, what a training step sees; Stream, what every data source offers
        synthetic_data     key-value recall, generated
        packed_data        a dataset that exact-prep packed and weighed
    Model and training
        decoder            the small decoder
        attention          its attention inside segments
        huggingface_model  a Hugging Face causal LM from disk instead
        training           the training loop, the same for all arms
    What is measured on a trained model
        measurements       decides which of these run, and runs them
        probes             held-out loss by bucket, recall by distance, evidence ablation
        ruler              a RULER-style suite for models that read text
        nolima             NoLiMa's needles, from the user's copy
        harness            tasks of lm-evaluation-harness
    What comes out
        differences        paired differences between arms, with intervals, and how to read them
        results            the records in results.json
        plots              the plots, one line per arm

The rule for reading the results was set before any run: EXACT helps only where it beats both `uniform` and `lr`, at
contexts or distances in the tail, with a 95 % interval over seeds that excludes zero.
"""
