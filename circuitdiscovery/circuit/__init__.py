"""Circuits and scores of edges: values, files, comparison and drawing."""
