"""Extraction: an encoder's frames and units of recordings of any length, as data sets."""
