"""What the page of a run says of a survey; loaded in the process that draws it alone."""
