"""Training data: which molecules, which geometries, and their labels."""
