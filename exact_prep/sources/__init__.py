"""Documents in: from files, directories, globs, stdin and Hugging Face datasets to batches of texts or token ids.

The way of a document, and the file where each step lives:

1. What the user named becomes files in order.                     discovery, buckets
2. Files become slices, and slices become tasks.                   slices, continuation
3. The table of formats names the reader of a slice.               formats
4. Bytes are read in blocks and decompressed.                      streams
5. A reader cuts records out of them and takes the document from each record:

   JSON lines, and the decoding of any JSON record                 jsonl
   JSON arrays, and JSON objects that follow each other            json_array
   CSV and TSV                                                     delimited
   plain text                                                      text
   WARC; tar archives (through `tape`)                             warc, webdataset
   Parquet; Arrow files and streams; Hugging Face datasets         parquet, arrow, hub
   columns as documents (what these three share)                   column_values
   documents too long for one string, given in pieces              long_texts

6. A source label, and its own id, is found for each document.     labels
7. Small batches become larger ones, numbered within their task.   batching
8. A record's number says where it is, in the words of messages.   places

`inputs` is the face of all this: `find_inputs` gives `Inputs`, which plan tasks, read them, and give a sample of the
corpus (`samples`). `extracts` are a sample that says which bytes it stands for. Helpers that several readers share are
in `batching`; names of nested fields in `fields`.

Every record is a document, empty, or bad. A bad one stops the run, or is skipped and listed with its file, its place
and the reason. Nothing is imported here that takes time.
"""

from __future__ import annotations

from exact_prep.sources.inputs import Inputs, find_inputs
from exact_prep.sources.labels import SourceLabels
from exact_prep.sources.places import RecordPlaces

__all__ = ["Inputs", "RecordPlaces", "SourceLabels", "find_inputs"]
