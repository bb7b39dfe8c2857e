"""Files: atomic writing, strict reading, and where the bundled data is."""
