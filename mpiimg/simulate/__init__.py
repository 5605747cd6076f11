"""Phantoms with known truth, any size, made rank by rank."""
