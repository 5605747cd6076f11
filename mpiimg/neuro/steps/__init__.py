"""Steps of diffusion MRI: what each reads, computes and writes."""
