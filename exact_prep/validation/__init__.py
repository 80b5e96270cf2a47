"""`exact-prep validate`: trains models that differ only in the per-token weights, with controls, and compares them.

Read the files in this order.

    What is run
        tiers              four sizes of experiment: smoke, example, gpu, model
        arms               the arms: uniform, exact, and the controls
        jobs               an Experiment (what the user asked for) and its Jobs (a base; uniform at a rate; an arm)
        budget             makes an experiment as large as the time allows
        experiment         runs the jobs, continues after an interruption, writes results.json
    Data
        training_batches   Batch, what a training step sees; Stream, what every data source offers
        synthetic_data     key-value recall, generated
        packed_data        a dataset that exact-prep packed and weighed, divided: held out, for bases, for arms
        found_text         makes such a dataset of the machine's Python sources
    Model and training
        decoder            the small decoder
        attention          its attention inside segments
        huggingface_model  a Hugging Face causal LM from disk instead
        training           the training loop, the same for all arms
    What is measured on a trained model
        measurements       decides which of these run, and runs them
        probes             context gain, held-out loss by bucket, recall by distance, evidence ablation
        items              a measure by held-out item
        generation         greedy continuation, with a cache where the model has one
        ruler              a RULER-style suite for models that read text
        nolima             NoLiMa's needles, from the user's copy
        harness            tasks of lm-evaluation-harness
    What comes out
        differences        paired differences between arms, intervals over seeds and items, and how to read them
        results            the records in results.json
        plots              the plots: a column per arm; of one model, its levels

The rule for reading the results was set before any run. `uniform` is tuned first, on held-out rows that are not
measured later, and every arm trains at its learning rate. The primary measure is context gain at tau on held-out data:
EXACT helps where it beats both `uniform` and the `lr` of its own mass, after Holm's correction over the EXACT arms.
Other measures in the tail are a family of their own.
"""
