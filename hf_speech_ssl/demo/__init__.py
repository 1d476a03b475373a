"""A page to speak into: offline upload and the live microphone."""
