"""Models: what a block computes, and how one is loaded and proved equal to Hugging Face's."""
