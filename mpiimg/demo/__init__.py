"""make demo: both pipelines on small data, and a picture of what they made."""
