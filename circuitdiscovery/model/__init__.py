"""Models: what a block computes, and how one is loaded and checked against Hugging Face's."""
