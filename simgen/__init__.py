"""Zero-shot 3D molecule design by similarity kernels."""
