"""A base with its soft tokens behind HTTP: a page to try them on, and a model that MLflow registers and serves."""
