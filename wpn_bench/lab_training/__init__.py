"""Scripts that train the base model and the judge of the embedded lab."""
