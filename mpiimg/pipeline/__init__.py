"""plan decides, run runs, recipes list the stages of a pipeline."""
