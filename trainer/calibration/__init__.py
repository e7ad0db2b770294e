"""Measuring this machine: `trident plan --calibrate`."""
