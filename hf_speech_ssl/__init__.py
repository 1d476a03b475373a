"""hf_speech_ssl: BiRQ and Chunk SSL for Hugging Face Transformers."""
