"""What one task does: input slices to shards, a shard to weights, shards to findings. One task, one small record.

A stage runs anywhere: in this process, in a worker, on another machine. It writes under temporary names, publishes by
rename, and returns or saves a record. It plans nothing and repeats nothing; order, restart and sums are pipeline's.
"""
