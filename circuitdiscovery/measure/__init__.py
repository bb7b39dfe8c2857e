"""How well a circuit does what the model does, with intervals."""
