"""A folder of texts in, a folder of summaries out."""
