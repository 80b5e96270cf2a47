"""exact-prep: pack text corpora for long-context pretraining and weigh every token by its effective context."""

__version__ = "0.1.0"
