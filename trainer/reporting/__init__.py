"""Reporting: what runs left in their folders as one HTML page that needs no network, and as a figure. No torch."""
