"""What the application does with a model: one module for each ``task=``."""
