"""Training: a recipe assembled, trained into its run directory, and evaluated."""
