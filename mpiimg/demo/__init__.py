"""make demo: both pipelines on small data, and a page on what each run made."""
