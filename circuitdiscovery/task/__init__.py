"""Tasks: prompts, their counterfactuals and their answers, from templates, files and tables."""
