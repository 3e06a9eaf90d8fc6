"""How images are built: from a folder and its locked wheels, or by a Dockerfile."""
