"""Files: atomic writes, strict reading, and where shipped data lies."""
