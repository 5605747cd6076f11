"""Ranks: how they start, exchange, wait and agree. The one home of COMM_WORLD."""
