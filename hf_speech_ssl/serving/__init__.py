"""Serving: live streams and files of many clients through one model."""
