"""What a report says of diffusion MRI; loaded where a page is made, and in no rank."""
