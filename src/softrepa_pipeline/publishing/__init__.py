"""Soft tokens for others: a model card, the hub, and a folder that stock diffusers loads."""
