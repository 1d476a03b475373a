"""Recognition: any CTC model of the Hub, offline, on long files, and live."""
