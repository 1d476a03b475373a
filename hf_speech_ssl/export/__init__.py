"""Export: a CTC model as graphs that run without this package, without transformers, and without Python."""
