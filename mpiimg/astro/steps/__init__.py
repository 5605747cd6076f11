"""Steps of sky surveys: what each reads, computes and writes."""
