"""Kedro pipelines, one a stage: thin nodes around the library."""
