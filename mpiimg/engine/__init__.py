"""Arrays, ranks and files: what runs a recipe, and knows no format and no science."""
