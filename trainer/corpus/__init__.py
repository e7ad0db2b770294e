"""Bytes from anywhere to documents and records: names, kinds, compressions, fields, and what cannot be read."""
