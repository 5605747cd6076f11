"""Lazy arrays with named axes, items and tables: the primitives that any pipeline is made of."""
