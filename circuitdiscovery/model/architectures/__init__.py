"""The supported families, one file each: where a family keeps its weights, and how they are read."""
