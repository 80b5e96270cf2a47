"""A packed dataset for whoever trains on it: NumPy only, no framework.

rows.py      rows of a dataset: `exact_prep.open(DIR)`
ranges.py    rows of a dataset in a store, fetched by ranges
mixture.py   rows of several datasets at the rates of their table: `exact_prep.open([DIR, DIR])`
resample.py  rows drawn so that the tail has a given share
lookup.py    weights.json as a lookup table: `exact_prep.load_weights`
columns.py   what a trainer wants, derived from a row's stored columns
collate.py   rows to one batch of arrays
loader.py    batches of one rank, made ahead by a thread, with exact resume
order.py     which rows, when and on which rank: shuffling, sharding, exact resume
html.py      a dataset as a notebook shows it
blocks.py    all rows in the order of the files, checked, in blocks of bounded size: what exports read
"""
